"""What a training of a recipe would do, in words, without training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from llmcls.data.steps import global_batch_size, steps_per_epoch
from llmcls.model.build import packing_request
from llmcls.model.cards import UNMEASURED_EFFICIENCY, Card, card_of, efficiency_file, read_efficiency
from llmcls.model.memory import GIB, full_texts, memory_of
from llmcls.model.packed_forward import packing_in_words
from llmcls.model.pretrained import load_config
from llmcls.model.stand_in import DeviceKind, kind_of
from llmcls.model.step_trace import StepTracer, TraceError
from llmcls.recipe.defaults import micro_batch_tokens
from llmcls.recipe.schema import Recipe
from llmcls.results.run_folder import ExperimentFolder
from llmcls.training.epoch_cost import epoch_seconds, plan_passes
from llmcls.training.inputs import Inputs
from llmcls.training.token_budget import tokens_that_fit


@dataclass(frozen=True)
class Target:
    """The GPU that a preview is about.

    Attributes
    ----------
    kind : DeviceKind
    card : Card, optional
        If it is known.
    gib : float, optional
        Its memory, if it is known.
    efficiency : float
        The share of the roofline that training reaches.
    measured : bool
        Whether that was measured.
    """

    kind: DeviceKind
    card: Card | None = None
    gib: float | None = None
    efficiency: float = UNMEASURED_EFFICIENCY
    measured: bool = False


def target_of(recipe: Recipe, card: Card | None = None) -> Target:
    """A named card, or the first GPU of this machine, or some GPU on which everything works.

    Parameters
    ----------
    recipe : Recipe
        Its output root may hold a measured efficiency.
    card : Card, optional
        Named by the user.
    """
    if card is not None:
        return Target(DeviceKind("cuda", card.flash), card, card.gib)
    if not torch.cuda.is_available():
        return Target(DeviceKind())
    device = torch.device("cuda", torch.cuda.current_device())
    name, gib = torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device).total_memory / GIB
    measured = read_efficiency(efficiency_file(recipe.exp.output_root), name)
    return Target(kind_of(device), card_of(name), gib, measured or UNMEASURED_EFFICIENCY, measured is not None)


def preview(recipe: Recipe, inputs: Inputs, card: Card | None = None, price: float | None = None) -> list[str]:
    """Labels, model, memory, time, steps, results and devices, one line each.

    Parameters
    ----------
    recipe : Recipe
    inputs : Inputs
    card : Card, optional
        The card to estimate the time on. By default, the GPU of this machine.
    price : float, optional
        Of an hour on one card.
    """
    config = load_config(recipe.model, inputs.labels)
    rows = global_batch_size(recipe, 1)
    steps = steps_per_epoch(len(inputs.train_split), rows)
    storage = "4-bit" if recipe.model.use_4bit else recipe.model.torch_dtype
    trained = "all weights" if recipe.model.lora_r == 0 else f"LoRA r={recipe.model.lora_r}"
    gpus = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    device = torch.accelerator.current_accelerator() if gpus else None
    device = device or torch.device("cpu")
    model = f"model: {recipe.model.model_name} ({config.model_type}), "
    target = target_of(recipe, card)
    try:
        tracer = StepTracer(recipe, config, target.kind)
        model += f"{tracer.parameters / 1e6:,.1f} million parameters in "
        cost = [*_cost_lines(tracer, inputs, target, price), *_storage_advice(recipe, config)]
    except TraceError as error:
        cost = [f"memory: not known, because the model cannot be traced ({error})"]
    return [
        f"labels: {len(inputs.labels.names)} ({recipe.model.problem_type})",
        f"{model}{storage}, {trained}",
        f"micro-batches: {packing_in_words(config, packing_request(recipe, device))}",
        *cost,
        f"steps: {steps} per epoch of {rows} texts on one process, at most {recipe.train.num_train_epochs} epochs, "
        f"{len(recipe.exp.seeds)} seed(s)",
        f"results: {ExperimentFolder.of(recipe).path}",
    ]


def _cost_lines(tracer: StepTracer, inputs: Inputs, target: Target, price: float | None) -> Iterator[str]:
    """Memory, time and cost of the training steps."""
    recipe = tracer.recipe
    budget = micro_batch_tokens(recipe)
    if not isinstance(recipe.train.micro_batch_tokens, int) and target.gib is not None:
        # On a GPU the budget is measured, from the largest one that fits.
        budget = tokens_that_fit(tracer, target.gib)
    plan = plan_passes(tracer, inputs.train_split, budget)
    largest = tracer.cost(plan.largest)
    memory = memory_of(largest)
    fits = "" if target.gib is None else f"; {_fits(memory.total, target.gib)} the {target.gib:.0f} GiB of the GPU"
    yield f"memory: {memory}{fits}"
    if target.card is None:
        return
    typical = largest if plan.typical == plan.largest else tracer.cost(plan.typical)
    seconds = epoch_seconds(plan, typical, target.card) / target.efficiency
    how = "measured here" if target.measured else "a guess, not measured"
    yield (
        f"time: about {_duration(seconds)} per epoch on one {target.card.name}, evaluation not included: what the card "
        f"can do at most, of which {target.efficiency:.0%} are reached ({how})"
    )
    if price is not None:
        yield f"cost: about {seconds / 3600 * price:.2f} per epoch at {price:g} per hour"


def _fits(needed: float, gib: float) -> str:
    return "fits into" if needed <= gib else "does not fit into"


def _duration(seconds: float) -> str:
    """
    >>> _duration(50), _duration(3000), _duration(9000)
    ('50 s', '50 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _storage_advice(recipe: Recipe, config: Any) -> list[str]:
    """Whether 16 bits would fit: 4-bit weights are dequantized for every micro-batch, which costs time."""
    if not recipe.model.use_4bit:
        return []
    plain = replace(recipe, model=replace(recipe.model, use_4bit=False))
    needed = memory_of(StepTracer(plain, config).cost(full_texts(plain))).total
    if torch.cuda.is_available():
        have = torch.cuda.get_device_properties(0).total_memory / GIB
        if needed < 0.9 * have:
            return [
                f"advice: without 4-bit it needs about {needed:.1f} of {have:.0f} GiB; use_4bit=false trains faster"
            ]
        return [f"advice: keep 4-bit; without it about {needed:.1f} GiB are needed, and this GPU has {have:.0f}"]
    return [f"advice: without 4-bit it needs about {needed:.1f} GiB; on a GPU that has them, it trains faster"]
