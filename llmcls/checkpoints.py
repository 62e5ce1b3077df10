"""Checkpoints and the run folder's model: what is saved, what is kept, and how a run goes on exactly.

`checkpoints/last` holds all a run needs to go on; `checkpoints/best` the trained weights of the best
evaluation (`best_2`, ... the ones before, up to ``save_total_limit``). Both are independent of the engine
and of the number of processes: weights and optimizer state are stored whole, by parameter name. The order
of rows and the dropout masks are functions of seed, epoch and step, so no generator state is stored.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

from llmcls import UserMistake
from llmcls.engine import torch_optimizer, unwrapped
from llmcls.files import current_folder, read_json, replacing_folder, write_json
from llmcls.labels import LabelSpace
from llmcls.recipe import Recipe, recipe_to_dict, recipe_to_yaml
from llmcls.state import load_optimizer_moments, load_trained_weights, optimizer_moments, trained_weights

WEIGHTS, OPTIMIZER, PROGRESS = "trained.safetensors", "optimizer.pt", "progress.json"


@dataclass
class Progress:
    """Where a run stands.

    step_rows: rows of an optimizer step, fixed when the run began, so that it may go on with more or fewer processes.
    step: optimizer steps done. epoch, step_in_epoch: the next step to take. stale: evaluations since the best.
    seconds, samples, tokens: training done so far, for throughput over interruptions.
    history: one entry per evaluation.
    """

    seed: int
    step_rows: int
    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    best_value: float | None = None
    best_step: int | None = None
    stale: int = 0
    finished: bool = False
    loss_sum: float = 0.0
    loss_samples: int = 0
    seconds: float = 0.0
    samples: int = 0
    tokens: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


def save_last(folder: Path, accelerator: Accelerator, model: nn.Module, optimizer: Any, progress: Progress) -> None:
    """Write `checkpoints/last`. Every rank must call it; the main one writes."""
    weights = trained_weights(accelerator, model)
    moments = optimizer_moments(accelerator, model, optimizer)
    if accelerator.is_main_process:
        with replacing_folder(folder / "last") as temporary:
            save_file(weights, temporary / WEIGHTS)
            kind = type(torch_optimizer(optimizer)).__name__
            torch.save({"optimizer": moments, "class": kind}, temporary / OPTIMIZER)
            write_json(temporary / PROGRESS, dataclasses.asdict(progress))
    accelerator.wait_for_everyone()


def load_last(folder: Path, accelerator: Accelerator, model: nn.Module, optimizer: Any) -> Progress | None:
    """Restore `checkpoints/last` into model and optimizer; None when there is none. Every rank must call it."""
    last = current_folder(folder / "last")
    if last is None:
        return None
    progress = Progress(**read_json(last / PROGRESS))
    load_trained_weights(accelerator, model, load_file(last / WEIGHTS))
    saved = torch.load(last / OPTIMIZER, map_location="cpu", weights_only=True)
    kind = type(torch_optimizer(optimizer)).__name__
    if saved["class"] != kind:
        raise UserMistake(
            f"{last}: saved with the optimizer {saved['class']}, but this machine and recipe use "
            f"{kind}; go on where it was started, or set exp.overwrite=true to start anew"
        )
    load_optimizer_moments(accelerator, model, optimizer, saved["optimizer"])
    return progress


def save_best(folder: Path, accelerator: Accelerator, model: nn.Module, keep: int) -> None:
    """Write `checkpoints/best`, moving earlier ones back to `best_2` ... `best_<keep>`. Collective."""
    weights = trained_weights(accelerator, model)
    if accelerator.is_main_process:
        for rank in range(keep, 1, -1):
            newer = folder / ("best" if rank == 2 else f"best_{rank - 1}")
            older = folder / f"best_{rank}"
            if newer.exists():
                shutil.rmtree(older, ignore_errors=True)
                # The best stays in place until its successor is written: a crash here loses none.
                shutil.copytree(newer, older) if rank == 2 else os.replace(newer, older)
        with replacing_folder(folder / "best") as temporary:
            save_file(weights, temporary / WEIGHTS)
    accelerator.wait_for_everyone()


def load_best(folder: Path, accelerator: Accelerator, model: nn.Module) -> None:
    """Restore the weights of `checkpoints/best` into the model. Collective."""
    best = current_folder(folder / "best")
    if best is None:
        raise FileNotFoundError(f"{folder}: no best checkpoint was written")
    load_trained_weights(accelerator, model, load_file(best / WEIGHTS))


def save_model(
    folder: Path, accelerator: Accelerator, model: nn.Module, tokenizer: Any, labels: LabelSpace, recipe: Recipe
) -> None:
    """Write `model/`: adapter and head in peft's format (or the whole model), tokenizer, label names. Collective."""
    weights = trained_weights(accelerator, model)
    if accelerator.is_main_process:
        with replacing_folder(folder) as temporary:
            inner = unwrapped(model).model
            state = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
            if hasattr(inner, "peft_config"):
                inner.save_pretrained(temporary, state_dict=state)
            else:
                frozen = {n: t.detach().cpu() for n, t in inner.state_dict().items() if n not in state}
                inner.save_pretrained(temporary, state_dict={**frozen, **state})
            tokenizer.save_pretrained(temporary)
            write_json(temporary / "labels.json", dataclasses.asdict(labels))
            (temporary / "recipe.yaml").write_text(recipe_to_yaml(recipe), encoding="utf-8", newline="\n")
    accelerator.wait_for_everyone()


def differing_keys(saved: dict[str, Any], recipe: Recipe) -> list[str]:
    """The keys in which a saved recipe would train another model than this one, as "section.key"."""
    now = recipe_to_dict(recipe)
    harmless = {"train.report_to", "train.logging_steps", "train.train_metrics_rows", "train.save_total_limit"}
    return [
        f"{section}.{key}"
        for section in ("data", "model", "train")
        for key, value in now[section].items()
        if f"{section}.{key}" not in harmless and saved.get(section, {}).get(key, value) != value
    ]
