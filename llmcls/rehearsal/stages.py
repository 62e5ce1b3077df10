"""The stages of a rehearsal: train, stop, resume and predict in real processes, and check each result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmcls.common.files import read_json
from llmcls.common.signals import STOP_AFTER
from llmcls.common.user_error import UserError
from llmcls.data.tables import read_table
from llmcls.engine.accelerator import REHEARSAL
from llmcls.recipe.schema import Recipe
from llmcls.rehearsal.miniature import Miniature
from llmcls.results.finished_runs import labels_of
from llmcls.results.predictions import read_predictions
from llmcls.results.run_folder import PREDICTED_SPLITS, ExperimentFolder, RunFolder
from llmcls.training.checkpoints import read_progress

# Accepted relative difference of the losses of a resumed run; bf16 and fp16 sums depend on their order.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 2e-2}


@dataclass
class Stage:
    """Where a rehearsal runs.

    Attributes
    ----------
    profile : Path
    settings : dict
        The content of the profile.
    processes : int
    mini : Miniature
        The recipe in miniature.
    folder : Path
        For everything that the rehearsal writes.
    """

    profile: Path
    settings: dict[str, Any]
    processes: int
    mini: Miniature
    folder: Path

    def run_folder(self, name: str) -> RunFolder:
        """The run of the miniature with this run name."""
        return ExperimentFolder(ExperimentFolder.of(self.mini.recipe).path / name).run(0)


def rehearse(stage: Stage, steps: int) -> Iterator[str]:
    """Train, stop, resume and predict.

    Yields
    ------
    What each part proved, as a sentence.

    Raises
    ------
    RuntimeError
        If a part ran, but its result is wrong.
    UserError
        If a part ended with an error that the user can correct.
    """
    yield from _rehearse_training(stage, steps)
    yield from _rehearse_resume(stage, steps)
    yield from _rehearse_prediction(stage)


def _rehearse_training(stage: Stage, steps: int) -> Iterator[str]:
    recipe, run = stage.mini.recipe, stage.run_folder("whole")
    _train(stage, "whole")
    environment, log = read_json(run.environment), _metrics_log(run)
    _require(environment["processes"] == stage.processes, f"{environment['processes']} processes trained")
    losses = _losses(run)
    _require(len(losses) == steps, f"{len(losses)} of {steps} optimizer steps were logged")
    storage = "4-bit" if recipe.model.use_4bit else recipe.model.torch_dtype
    yield (
        f"{environment['engine']} x {stage.processes}, weights in {storage}: {steps} optimizer steps, "
        f"loss {losses[0]:.4f} to {losses[-1]:.4f}"
    )
    sizes = next(line for line in log if line["split"] == "engine")
    for kind in ("weights", "optimizer_state"):
        words = kind.replace("_", " ")
        yield f"a rank holds {sizes[kind]:,} of {sizes[f'{kind}_total']:,} {words} (elements as stored)"
    files = recipe.data.files()
    for split in PREDICTED_SPLITS:
        if run.predictions(split).exists():
            rows, found = (
                len(read_table(files[split], data=recipe.data)),
                len(_probabilities(run.predictions(split), run)),
            )
            _require(found == rows, f"{found} of {rows} {split} rows were evaluated")
            yield f"evaluation scored each of {rows} {split} rows once, in order"


def _rehearse_resume(stage: Stage, steps: int) -> Iterator[str]:
    run, middle = stage.run_folder("cut"), steps // 2
    _train(stage, "cut", stop_after=middle)
    stopped = read_progress(run.last_checkpoint).step
    _require(stopped == middle, f"the checkpoint is of step {stopped}, not {middle}")
    _train(stage, "cut")
    expected = np.array(_losses(stage.run_folder("whole")))
    apart = float(np.max(np.abs(np.array(_losses(run)) - expected) / np.abs(expected)))
    _require(apart <= _tolerance(stage.mini.recipe), f"after a resume the loss is off by {apart:.1e}")
    yield f"stopped after step {middle}, resumed: same loss curve as the uninterrupted run (within {apart:.0e})"


def _rehearse_prediction(stage: Stage) -> Iterator[str]:
    recipe, run = stage.mini.recipe, stage.run_folder("cut")
    source, output = recipe.data.test_csv or recipe.data.train_csv, stage.folder / "predictions.jsonl"
    arguments = ["--run", str(run.path), "--input", source, "--output", str(output)]
    _execute([sys.executable, "-m", "llmcls.predict", *arguments])
    plain, rows = _probabilities(output, run), len(read_table(source, data=recipe.data))
    _require(len(plain) == rows, f"{len(plain)} of {rows} rows were predicted")
    known = _probabilities(run.predictions("test"), run) if recipe.data.test_csv else {}
    apart = max((float(np.abs(plain[row] - known[row]).max()) for row in known), default=0.0)
    _require(
        apart <= _tolerance(recipe),
        f"a single process predicts other probabilities than the engine, off by {apart:.1e}",
    )
    yield f"a single process predicts {rows} rows from the run folder as the engine did (within {apart:.0e})"


def _train(stage: Stage, name: str, stop_after: int | None = None) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(stage.profile)]
    command += ["--num_processes", str(stage.processes), "--num_machines", "1", "--machine_rank", "0"]
    if stage.settings["distributed_type"] != "NO":
        command += ["--main_process_port", "0"]
    command += ["-m", "llmcls.rehearsal.worker", "llmcls.train", str(stage.mini.path), f"exp.run_name={name}"]
    _execute(command, stop_after)


def _execute(command: list[str], stop_after: int | None = None) -> None:
    """Run one part; its output is shown only if it fails."""
    environment = os.environ | {
        REHEARSAL: "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        STOP_AFTER: str(stop_after or -1),
    }  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", errors="replace")
    # Behind the launcher, a run that saved a checkpoint and stopped ends with 1, like a failed one.
    if done.returncode == 0 or (stop_after and "stopped by a signal after step" in done.stderr):
        return
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    if errors:
        raise UserError(errors[0].removeprefix("error: "))
    raise RuntimeError(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr[-4000:]}")


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise RuntimeError(f"the rehearsal failed: {otherwise}")


def _tolerance(recipe: Recipe) -> float:
    return TOLERANCE[recipe.model.torch_dtype]


def _metrics_log(run: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics_log.read_text(encoding="utf-8").splitlines()]


def _losses(run: RunFolder) -> list[float]:
    by_step = {line["step"]: line["loss"] for line in _metrics_log(run) if line["split"] == "train"}
    return [by_step[step] for step in sorted(by_step)]


def _probabilities(path: Path, run: RunFolder) -> dict[str, np.ndarray]:
    """Probabilities, float32 [labels], by row id."""
    found = read_predictions(path, labels_of(run))
    return dict(zip(found.ids, found.probabilities, strict=True))
