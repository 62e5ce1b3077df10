"""The warm start: a linear probe of the frozen model, from which the head starts and which is a baseline.

Both need one forward pass over the training texts before the first step, when the adapter still changes nothing. The
probe is kept in the experiment folder for all seeds.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from llmcls.common.files import replacing
from llmcls.data.encoding import encode, label_texts
from llmcls.data.splits import Split, some_rows
from llmcls.engine.accelerator import unwrapped
from llmcls.engine.agreement import first_process_first, from_main
from llmcls.engine.full_state import set_trained_weights
from llmcls.evaluation.baseline_store import Baseline, log_baseline
from llmcls.evaluation.baselines import baseline_key, measure_baseline
from llmcls.evaluation.metrics import to_probabilities
from llmcls.evaluation.probe import Evidence, Probe, fit_probe, label_probe
from llmcls.evaluation.scoring import Scorer
from llmcls.evaluation.states import collect_states
from llmcls.model.base_files import base_files
from llmcls.model.head import head_linear
from llmcls.recipe.schema import Recipe
from llmcls.results.run_folder import ExperimentFolder
from llmcls.training.frozen_states import FrozenStates, model_hash
from llmcls.training.inputs import Inputs
from llmcls.training.setup import TrainingSetup
from llmcls.training.tracking import duration

log = logging.getLogger(__name__)

# A probe is fitted on at most so many rows, and so many bytes of states.
MAX_ROWS, MAX_BYTES = 50_000, 2**30
# A head of the words of the labels alone needs texts for its scale only.
SCALE_ROWS = 1500
# If the head has more weights than this for each training text, `auto` takes random weights: such a probe separates the
# training texts at once, and what is left to learn does not reach the adapter. Measured with SmolLM2-135M: with 58, 12
# and 4.9 weights for each text a probe ended below random weights, with 2.9 above (bench/results.md, Warm start and
# Changes).
WEIGHTS_PER_TEXT = 4
# Up to this product of rows, width and labels, fitting takes about a minute on one core for every 10^9.
QUICK_FIT = 5_000_000_000
# Share of the work of the run that the passes of a probe may cost if only the baseline needs it.
QUICK_PASSES = 0.25


@dataclass(frozen=True)
class Plan:
    """What is made before the first step.

    Attributes
    ----------
    head : str
        "random", "probe" or "label_text": what the head starts from.
    baseline : bool
        Whether the probe is measured as a baseline.
    """

    head: str
    baseline: bool

    @property
    def probes(self) -> list[str]:
        """The probes that are fitted."""
        return sorted(({self.head} - {"random"}) | ({"probe"} if self.baseline else set()))


def warm_start(setup: TrainingSetup, model: nn.Module, scorer: Scorer, inputs: Inputs) -> None:
    """Give the head what ``model.head_init`` says, and measure the probe as a baseline. Collective.

    Call it before the first step. With random weights and no baseline it does nothing.

    Parameters
    ----------
    setup : TrainingSetup
    model : nn.Module
        As `llmcls.engine.accelerator.prepare` returned it.
    scorer : Scorer
        Of this model.
    inputs : Inputs

    Raises
    ------
    UserError
        If the recipe asks for a probe and the model has no linear head.
    """
    linear = head_linear(unwrapped(model), len(setup.labels.names))
    plan = _plan(setup, inputs, linear)
    start, main = time.perf_counter(), setup.accelerator.is_main_process
    path, baselines = setup.folder.experiment.probe, setup.folder.experiment.baselines
    if main and not plan.baseline and setup.recipe.exp.baselines is not False and baselines.key("probe"):
        # Of a recipe that was overwritten.
        baselines.write("probe", "", {})
    if linear is None or not plan.probes:
        return
    key = _key(setup, model) if main else ""
    measured = main and (not plan.baseline or baselines.key("probe") == key)
    probes = from_main(setup.accelerator, _read(path, key, plan) if measured else None)
    if probes is None:
        kept = _frozen_states(setup, model)
        _announce(setup, scorer, inputs, linear, plan, kept)
        probes = _fit(setup, scorer, inputs, linear, plan)
        if main:
            _write(path, key, probes)
        if plan.baseline:
            baseline = _measure(setup, scorer, inputs, linear, probes["probe"], kept)
            if main:
                log_baseline("probe", baseline, inputs.labels, time.perf_counter() - start)
                baselines.write("probe", key, {"probe": baseline})
    if plan.head != "random":
        set_head(setup.accelerator, model, linear, probes[plan.head])
        kind = "a linear probe of the frozen model" if plan.head == "probe" else "the words of the labels"
        log.info("the head starts from %s (%s)", kind, duration(time.perf_counter() - start))


def set_head(accelerator: Accelerator, model: nn.Module, linear: nn.Linear, probe: Probe) -> None:
    """Put the weights of a probe into the head, on any engine. Collective."""
    name = next(name for name, module in unwrapped(model).named_modules() if module is linear)
    weights = {f"{name}.weight": torch.from_numpy(probe.weight)}
    if probe.bias is not None:
        weights[f"{name}.bias"] = torch.from_numpy(probe.bias)
    set_trained_weights(accelerator, model, weights)


def _plan(setup: TrainingSetup, inputs: Inputs, linear: nn.Linear | None) -> Plan:
    """What the recipe asks for, as far as this model and data allow it; the log says what they do not."""
    recipe, wanted = setup.recipe, setup.recipe.model.head_init
    obstacle = None
    if linear is None:
        obstacle = "the model has no linear head"
    elif setup.labels.many:
        obstacle = f"a probe of {len(setup.labels.names):,} labels would take hours"
    elif _rows(setup, linear) * linear.in_features * linear.out_features > QUICK_FIT:
        obstacle = "fitting it would take long"
    head = "probe" if wanted == "auto" else wanted
    texts = len(setup.train_split)
    few = linear is not None and texts * WEIGHTS_PER_TEXT < linear.in_features * linear.out_features
    why_random = obstacle or (f"{texts:,} texts are too few for its weights" if few else None)
    if wanted == "auto" and why_random is not None:
        log.info("the head starts from random weights, not from a probe: %s", why_random)
        head = "random"
    elif head != "random" and linear is None:
        raise recipe.error("model.head_init", f"is {wanted}, but {obstacle}; set it to random")
    if recipe.exp.baselines is False:
        return Plan(head, baseline=False)
    if recipe.exp.baselines is None and head != "probe" and obstacle is None:
        obstacle = _too_long(setup, inputs)
    possible = linear is not None and not setup.labels.many
    baseline = possible and (obstacle is None or head == "probe" or recipe.exp.baselines is True)
    if not baseline:
        advice = "" if not possible else "; set exp.baselines=true to run it"
        log.info("the baseline of a linear probe is skipped: %s%s", obstacle, advice)
    return Plan(head, baseline)


def _rows(setup: TrainingSetup, linear: nn.Linear) -> int:
    """Training rows that a probe is fitted on."""
    return min(len(setup.train_split), MAX_ROWS, MAX_BYTES // (4 * linear.in_features))


def _too_long(setup: TrainingSetup, inputs: Inputs) -> str | None:
    """Why the passes over the texts are not worth it for a baseline alone; None if they are."""
    train = int(setup.train_split.lengths.sum())
    scored = sum(int(s.lengths.sum()) for s in (inputs.validation_split, inputs.test_split) if s is not None)
    # A step costs about three forward passes over its texts.
    per_row = train / len(setup.train_split)
    run = 3 * per_row * setup.total_steps * setup.global_batch_size + scored
    return None if train + scored <= QUICK_PASSES * run else "its passes would be a large part of the run"


def _sample(setup: TrainingSetup, linear: nn.Linear, plan: Plan) -> Split:
    """The training texts that the probes are fitted on."""
    rows = _rows(setup, linear)
    return some_rows(setup.train_split, rows if "probe" in plan.probes else min(rows, SCALE_ROWS), seed=0)


def _announce(
    setup: TrainingSetup, scorer: Scorer, inputs: Inputs, linear: nn.Linear, plan: Plan, kept: FrozenStates
) -> None:
    """Say what the frozen model is about to read, because a run shows no steps meanwhile."""
    if not setup.accelerator.is_main_process:
        return
    splits = [_sample(setup, linear, plan)]
    if plan.baseline:
        scored = [split for split in (inputs.validation_split, inputs.test_split) if split is not None]
        splits += [split for split in scored if not kept.has(scorer, split, linear)]
    texts, tokens = sum(map(len, splits)), sum(int(split.lengths.sum()) for split in splits)
    log.info("the frozen model reads %s texts (%s tokens) for a probe", f"{texts:,}", f"{tokens:,}")


def _fit(setup: TrainingSetup, scorer: Scorer, inputs: Inputs, linear: nn.Linear, plan: Plan) -> dict[str, Probe]:
    """Collect the states and fit the planned probes; the same on every rank. Collective."""
    sample = _sample(setup, linear, plan)
    states = collect_states(scorer, sample, linear)
    words = collect_states(scorer, label_split(setup.recipe, inputs), linear)
    probes: dict[str, Probe] = {}
    with first_process_first(setup.accelerator, setup.accelerator.is_main_process):
        if states is not None and words is not None:
            evidence, has_bias = Evidence(states, sample.known_labels, words), linear.bias is not None
            fits = {"probe": fit_probe, "label_text": label_probe}
            probes = {kind: fits[kind](evidence, setup.labels, has_bias) for kind in plan.probes}
    return from_main(setup.accelerator, probes)


def label_split(recipe: Recipe, inputs: Inputs) -> Split:
    """The words of each label as a tokenized split, one row per label, read as the texts are read."""
    names = inputs.labels.names
    ids = encode(label_texts(names, recipe.data), inputs.tokenizer, recipe.data, names)
    tokens = [np.array(row, dtype=np.int32) for row in ids]
    lengths = np.array([len(row) for row in tokens], dtype=np.int32)
    return replace(inputs.train_split, name="labels", tokens=tokens, lengths=lengths, labels=None, soft=None)


def _measure(
    setup: TrainingSetup, scorer: Scorer, inputs: Inputs, linear: nn.Linear, probe: Probe, kept: FrozenStates
) -> Baseline:
    """Measure a probe on validation and test. Collective."""
    scores, values = {}, {}
    for name, split in (("validation", inputs.validation_split), ("test", inputs.test_split)):
        if split is not None:
            logits = kept.logits(scorer, split, linear, probe)
            scores[name], values[name] = to_probabilities(logits, setup.labels.problem_type), split.known_labels
    return measure_baseline(scores, values, setup.recipe, setup.labels)


def _key(setup: TrainingSetup, model: nn.Module) -> str:
    """A hash of what a probe depends on."""
    return baseline_key(setup.recipe, setup.labels, *_frozen_model(setup, model))


def _frozen_states(setup: TrainingSetup, model: nn.Module) -> FrozenStates:
    """Where the states of the frozen model are kept."""
    exp = replace(setup.recipe.exp, run_name=None)
    folder = ExperimentFolder.of(replace(setup.recipe, exp=exp)).path
    return FrozenStates(folder, model_hash(base_files(setup.recipe.model), *_frozen_model(setup, model)))


def _frozen_model(setup: TrainingSetup, model: nn.Module) -> tuple[dict[str, Any], str, int | None]:
    """What says how the frozen model computes: its section of the recipe, the precision, and the seed or None."""
    spec = asdict(setup.recipe.model)
    for name in ("hf_token", "head_init", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_layers"):
        del spec[name]
    # The other new layers of an encoder are random, so its states depend on the seed.
    seed = None if unwrapped(model).is_decoder else setup.seed
    return spec, setup.accelerator.mixed_precision, seed


def _write(path: Path, key: str, probes: dict[str, Probe]) -> None:
    """Store probes in one file."""
    tensors: dict[str, torch.Tensor] = {}
    for kind, probe in probes.items():
        parts: dict[str, Any] = {"weight": probe.weight, "bias": probe.bias}
        tensors |= {f"{kind}.{name}": torch.from_numpy(part) for name, part in parts.items() if part is not None}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"of": key})


def _read(path: Path, key: str, plan: Plan) -> dict[str, Probe] | None:
    """The planned probes from the file of `_write`; None if it has not all of them, or those of something else."""
    if not path.is_file():
        return None
    with safe_open(path, framework="np") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if (file.metadata() or {}).get("of") != key or any(f"{kind}.weight" not in stored for kind in plan.probes):
            return None
    return {kind: Probe(stored[f"{kind}.weight"], stored.get(f"{kind}.bias")) for kind in plan.probes}
