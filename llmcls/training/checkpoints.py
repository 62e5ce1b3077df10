"""Checkpoints and the saved model: what is written, what is kept, and how a run resumes exactly.

`checkpoints/last` holds all that a run needs to resume, `checkpoints/previous` the same one step earlier, in case the
last is damaged, which its manifest tells; `checkpoints/best` holds the trained weights of the best
evaluation (`best_2`, ... those of earlier bests, up to ``save_total_limit``). Both are independent of the engine and
of the number of processes: weights and optimizer state are stored whole, by parameter name. The order of rows and the
dropout masks are functions of seed, epoch and step, so no generator state is stored.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

from llmcls.common.files import read_json, replacing_folder, write_json
from llmcls.common.heartbeat import beat
from llmcls.common.manifest import damage, write_manifest
from llmcls.common.user_error import UserError
from llmcls.data.labels import LabelSpace
from llmcls.engine.accelerator import unwrapped
from llmcls.engine.agreement import first_process_first, from_main, on_main, require_same
from llmcls.engine.full_state import (
    full_optimizer_state,
    load_optimizer_state,
    load_trained_weights,
    trained_weights,
)
from llmcls.engine.shards import torch_optimizer
from llmcls.recipe.load import recipe_to_yaml
from llmcls.recipe.schema import Recipe
from llmcls.results.run_folder import PROGRESS, RunFolder
from llmcls.training.best_checkpoints import WEIGHTS, require_best

log = logging.getLogger(__name__)

OPTIMIZER = "optimizer.pt"


@dataclass
class Interval:
    """Sums over the optimizer steps since the last log line, over all ranks.

    Attributes
    ----------
    steps, rows, tokens : int
    loss_sum, loss_rows : float, int
        Training losses, and the rows that they are of.
    seconds : float
        Mean over the ranks.
    largest_norm : float
        Of the gradients.
    """

    steps: int = 0
    rows: int = 0
    tokens: int = 0
    loss_sum: float = 0.0
    loss_rows: int = 0
    seconds: float = 0.0
    largest_norm: float = 0.0


@dataclass
class Progress:
    """How far a run is.

    Attributes
    ----------
    seed : int
    global_batch_size : int
        Rows of an optimizer step, fixed when the run starts, so that it can resume with more or fewer processes.
    step : int
        Optimizer steps done.
    epoch, step_in_epoch : int
        The next step to take.
    best_value, best_loss, best_step
        Of the best evaluation: the metric that selects it, the validation loss, and its step.
    stale : int
        Evaluations since the best one.
    finished : bool
        Whether training reached its end.
    loss_sum, loss_samples : float, int
        Training losses since the last evaluation.
    seconds, samples, tokens : float, int, int
        Training so far, for the throughput over interruptions.
    skipped_steps : int
        Steps that were left out, because their gradient was not a number.
    usual_norm, norms : float, int
        Mean norm of recent gradients, and how many there were.
    interval : Interval
        What the next log line will sum up, for a checkpoint between two of them.
    history : list of dict
        One entry per evaluation.
    """

    seed: int
    global_batch_size: int
    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    best_value: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    stale: int = 0
    finished: bool = False
    loss_sum: float = 0.0
    loss_samples: int = 0
    seconds: float = 0.0
    samples: int = 0
    tokens: int = 0
    skipped_steps: int = 0
    usual_norm: float = 0.0
    norms: int = 0
    interval: Interval = field(default_factory=Interval)
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Snapshot:
    """What a run needs to resume, in main memory, independent of the model that trains on.

    Attributes
    ----------
    weights : dict of str to Tensor
    optimizer : dict
        State and class.
    progress : dict
        The fields of `Progress`.
    """

    weights: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    progress: dict[str, Any]


def take_snapshot(accelerator: Accelerator, model: nn.Module, optimizer: Any, progress: Progress) -> Snapshot:
    """Copy the state of a run to main memory. Collective."""
    beat("copying the state after step", progress.step)
    weights = trained_weights(accelerator, model)
    state = full_optimizer_state(accelerator, model, optimizer)
    kind = type(torch_optimizer(optimizer)).__name__
    return Snapshot(weights, {"optimizer": state, "class": kind}, dataclasses.asdict(progress))


def write_last(run: RunFolder, snapshot: Snapshot) -> None:
    """Write `checkpoints/last`, and keep the one before."""
    with replacing_folder(run.last_checkpoint, run.previous_checkpoint) as temporary:
        save_file(snapshot.weights, temporary / WEIGHTS)
        torch.save(snapshot.optimizer, temporary / OPTIMIZER)
        write_json(temporary / PROGRESS, snapshot.progress)
        write_manifest(temporary, temporary.iterdir())


def save_last(run: RunFolder, accelerator: Accelerator, model: nn.Module, optimizer: Any, progress: Progress) -> None:
    """Write `checkpoints/last`, and keep the one before. Collective; the main process writes."""
    snapshot = take_snapshot(accelerator, model, optimizer, progress)
    beat("writing the checkpoint of step", progress.step)
    with first_process_first(accelerator, accelerator.is_main_process):
        if accelerator.is_main_process:
            write_last(run, snapshot)


def load_last(run: RunFolder, accelerator: Accelerator, model: nn.Module, optimizer: Any) -> Progress | None:
    """Restore `checkpoints/last`, or the one before if that is damaged, into model and optimizer. Collective.

    Returns
    -------
    The progress of the run, or None if there is no checkpoint.

    Raises
    ------
    UserError
        If no checkpoint is intact, or it was written by another version of llmcls, or for another model or optimizer.
    """
    last = on_main(accelerator, lambda: intact_checkpoint(run))
    if last is None:
        return None
    progress = read_progress(last) if (last / PROGRESS).is_file() else None
    by_main = from_main(accelerator, progress)
    require_same(progress, by_main, last)
    assert progress is not None, "the main process has read it"
    on_main(accelerator, lambda: require_best(run, last, progress.step, progress.best_step))
    load_trained_weights(accelerator, model, load_file(last / WEIGHTS))
    saved = torch.load(last / OPTIMIZER, map_location="cpu", weights_only=True)
    kind = type(torch_optimizer(optimizer)).__name__
    if saved["class"] != kind:
        raise UserError(
            f"{last}: saved with the optimizer {saved['class']}, but this machine and recipe use {kind}; resume on "
            "the machine and with the version of llmcls that started the run, or remove the folder of the run to start "
            "again"
        )
    load_optimizer_state(accelerator, model, optimizer, saved["optimizer"])
    return progress


def read_progress(checkpoint: Path) -> Progress:
    """The progress stored in a checkpoint folder.

    Raises
    ------
    UserError
        If another version of llmcls wrote it, with other fields.
    """
    saved = read_json(checkpoint / PROGRESS)
    try:
        return Progress(**saved | {"interval": Interval(**saved.get("interval", {}))})
    except (TypeError, AttributeError):
        raise UserError(
            f"{checkpoint} was written by another version of llmcls; resume with that version, "
            "or remove the folder of the run to start again"
        ) from None


def intact_checkpoint(run: RunFolder) -> Path | None:
    """The newest checkpoint of a run that is as it was written; None if there is no checkpoint.

    A damaged one is set aside if there is an older one, from which the run comes to the same result.

    Raises
    ------
    UserError
        If all are damaged.
    """
    found = [path for path in (run.last_checkpoint, run.previous_checkpoint) if path.exists()]
    problems = [damage(path) for path in found]
    for path, problem in zip(found, problems, strict=True):
        if problem is None:
            return path
        if None in problems:
            aside = path.with_name(f"{path.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)
            log.warning(
                "%s is damaged (%s); it is now %s, and the run continues from the one before", path, problem, aside
            )
    if found:
        raise UserError(f"{found[0]} is damaged: {problems[0]}; no other is intact; restore it, or remove {run.path}")
    return None


def save_model(
    run: RunFolder, accelerator: Accelerator, model: nn.Module, tokenizer: Any, labels: LabelSpace, recipe: Recipe
) -> None:
    """Write `model/`. Collective.

    It holds adapter and head in peft's format (or the whole model), the tokenizer, the labels and the recipe: all that
    prediction needs besides the pretrained model.
    """
    beat("saving the model")
    weights = trained_weights(accelerator, model)
    with first_process_first(accelerator, accelerator.is_main_process):
        if not accelerator.is_main_process:
            return
        with replacing_folder(run.model) as temporary:
            inner: Any = unwrapped(model).model
            state = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
            if hasattr(inner, "peft_config"):
                inner.save_pretrained(temporary, state_dict=state)
                _sort_modules(temporary / "adapter_config.json")
            else:
                frozen = {n: t.detach().cpu() for n, t in inner.state_dict().items() if n not in state}
                inner.save_pretrained(temporary, state_dict={**frozen, **state})
            # It remembers how the last text was cut, which depends on whether the texts were already tokenized.
            if hasattr(tokenizer, "backend_tokenizer"):
                tokenizer.backend_tokenizer.no_truncation()
            tokenizer.save_pretrained(temporary)
            write_json(temporary / run.labels.name, dataclasses.asdict(labels))
            text = recipe_to_yaml(recipe)
            (temporary / run.model_recipe.name).write_text(text, encoding="utf-8", newline="\n")


def _sort_modules(adapter_config: Path) -> None:
    """Write the names of the adapted modules in an order of their own: peft has them in a set."""
    config = read_json(adapter_config)
    for name, value in config.items():
        if name.endswith("_modules") and isinstance(value, list):
            config[name] = sorted(value)
    write_json(adapter_config, config)
