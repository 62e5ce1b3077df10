"""The weights of the best evaluations, which a run ends with: `checkpoints/best`, `best_2`, ... up to a number.

A run that was killed while it wrote them evaluates the same step again. So each function may be repeated, and loses
none of them.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from llmcls.common.files import current_folder, replacing_folder
from llmcls.common.heartbeat import beat
from llmcls.common.manifest import damage, write_manifest
from llmcls.common.user_error import UserError
from llmcls.engine.agreement import first_process_first, from_main, on_main, require_same
from llmcls.engine.full_state import load_trained_weights, trained_weights
from llmcls.results.run_folder import RunFolder

log = logging.getLogger(__name__)

WEIGHTS = "trained.safetensors"


def save_best(run: RunFolder, accelerator: Accelerator, model: nn.Module, keep: int, step: int) -> None:
    """Write `checkpoints/best` of a step, after moving earlier ones to `best_2` ... `best_<keep>`. Collective."""
    weights = trained_weights(accelerator, model)
    beat("writing the best checkpoint, of step", step)
    with first_process_first(accelerator, accelerator.is_main_process):
        if not accelerator.is_main_process:
            return
        _shift(run, keep, step)
        _write_best(run, weights, step)


def _write_best(run: RunFolder, weights: dict[str, torch.Tensor], step: int) -> None:
    with replacing_folder(run.best_checkpoint()) as temporary:
        save_file(weights, temporary / WEIGHTS, metadata={"step": str(step)})
        write_manifest(temporary, temporary.iterdir())


def _shift(run: RunFolder, keep: int, step: int) -> None:
    """Move the best to `best_2`, that to `best_3`, and so on, to make room for the best of a step.

    A kill can come between any two lines, and then all of it is done again.
    """
    best, second = run.best_checkpoint(), run.best_checkpoint(2)
    if keep == 1 or not best.exists() or _step_of(best) in (None, str(step)):
        return
    if _step_of(second) != _step_of(best):
        if damage(second) is not None:
            shutil.rmtree(second, ignore_errors=True)
        kept = 1
        while kept < keep and run.best_checkpoint(kept).exists():
            kept += 1
        for rank in range(kept, 2, -1):
            shutil.rmtree(run.best_checkpoint(rank), ignore_errors=True)
            os.replace(run.best_checkpoint(rank - 1), run.best_checkpoint(rank))
        # The best stays where it is until its successor is written, so a kill here loses none.
        with replacing_folder(second) as temporary:
            shutil.copytree(best, temporary, dirs_exist_ok=True)


def _step_of(checkpoint: Path) -> str | None:
    """The step of an intact checkpoint; None if it is missing or damaged."""
    return _saved_step(checkpoint) if damage(checkpoint) is None else None


def require_best(run: RunFolder, checkpoint: Path, step: int, best_step: int | None) -> None:
    """Check the weights of the best evaluation, and write them again if the checkpoint has the same.

    Parameters
    ----------
    run : RunFolder
    checkpoint : Path
        From which the run resumes.
    step, best_step : int
        Of that checkpoint, and of the best evaluation until then.

    Raises
    ------
    UserError
        If they are damaged, and nothing else holds them.
    """
    if best_step is None:
        return
    best = current_folder(run.best_checkpoint()) or run.best_checkpoint()
    problem = damage(best)
    if problem is None:
        return
    if best_step != step:
        raise UserError(f"{best} is damaged: {problem}; no other checkpoint has its weights; remove {run.path}")
    log.warning("%s is damaged (%s); it is written again from %s", best, problem, checkpoint)
    _write_best(run, load_file(checkpoint / WEIGHTS), step)


def load_best(run: RunFolder, accelerator: Accelerator, model: nn.Module) -> None:
    """Restore the weights of `checkpoints/best` into the model. Collective.

    Raises
    ------
    UserError
        If they are missing or damaged.
    """

    def intact() -> Path:
        best = current_folder(run.best_checkpoint()) or run.best_checkpoint()
        problem = damage(best)
        if problem:
            raise UserError(f"{best} is damaged: {problem}; restore it, or remove {run.path} to train again")
        return best

    best = on_main(accelerator, intact)
    step = _saved_step(best)
    require_same(step, from_main(accelerator, step), best)
    load_trained_weights(accelerator, model, load_file(best / WEIGHTS))


def _saved_step(checkpoint: Path) -> str | None:
    """The step stored with the weights of a checkpoint folder; None if this machine does not see them."""
    if not (checkpoint / WEIGHTS).is_file():
        return None
    with safe_open(checkpoint / WEIGHTS, framework="pt") as file:
        return (file.metadata() or {}).get("step", "")
