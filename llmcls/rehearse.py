"""Rehearse a cluster job on a laptop: ``python -m llmcls.rehearse RECIPE --profile PROFILE --processes N``.

Runs the profile's real engine (DDP, FSDP2, ZeRO) over gloo on CPU processes, with the recipe in miniature: some
optimizer steps, an evaluation, a checkpoint, a stop and a resume, a prediction. Then says what this proved, what
it could not, and how much memory the real model needs on each GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import yaml

from llmcls import UserMistake, run_command
from llmcls.checkpoints import PROGRESS
from llmcls.engine import REHEARSAL
from llmcls.files import read_json
from llmcls.interrupt import STOP_AFTER
from llmcls.memory import estimate, guessed_shape, model_billions, shape_of, sharding_of
from llmcls.miniature import SPLITS, Miniature, make_miniature
from llmcls.recipe import Recipe, load_recipe
from llmcls.report import experiment_folder
from llmcls.tables import read_table

# Losses of a resumed run against the uninterrupted one, relative; bf16 and fp16 sums depend on their order.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 2e-2}
NOT_PROVED = (
    "that the real model fits and how fast it is (see the estimate, and train a few steps with train.max_steps=5)",
    "the GPU's kernels, NCCL and the network between machines",
    "the quality of the result: a few steps of a tiny random model say nothing of it",
)


@dataclass
class Stage:
    """Where the rehearsal takes place: the profile's file and content, processes, and the recipe in miniature."""

    profile: Path
    settings: dict[str, Any]
    processes: int
    mini: Miniature
    folder: Path

    def run_folder(self, name: str) -> Path:
        """Of a run of the miniature."""
        return experiment_folder(self.mini.recipe) / name / "run_0"


def main(argv: list[str] | None = None) -> None:
    """Rehearse and report; exit code 1 when something did not hold."""
    parser = argparse.ArgumentParser(prog="llmcls.rehearse", description="Rehearse a profile on CPU processes.")
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--profile", required=True, help="a file, or a name in accel_configs/")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps; stopped and resumed in the middle")
    parser.add_argument("--keep", help="keep the miniature and its runs in this folder")
    arguments = parser.parse_intermixed_args(argv)
    datasets.disable_progress_bars()
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    profile = find_profile(arguments.profile)
    settings = yaml.safe_load(profile.read_text(encoding="utf-8"))
    if arguments.steps < 2 or arguments.processes < 1:
        raise UserMistake("--steps must be at least 2 and --processes at least 1")
    if settings["distributed_type"] == "NO" and arguments.processes > 1:
        raise UserMistake(f"{profile} is for one process; set --processes 1, or take accel_configs/ddp.yaml")
    folder = Path(arguments.keep) if arguments.keep else Path(tempfile.mkdtemp(prefix="rehearsal-"))
    shutil.rmtree(folder / "outputs", ignore_errors=True)
    try:
        began = time.perf_counter()
        mini = make_miniature(recipe, folder, arguments.steps)
        stage = Stage(profile, settings, arguments.processes, mini, folder)
        print(f"rehearsing {arguments.recipe} with {profile.name} on {arguments.processes} CPU process(es)", flush=True)
        for proof in rehearse(stage, arguments.steps):
            print(f"  proved      {proof}", flush=True)
        for stand_in in mini.stand_ins:
            print(f"  stood in    {stand_in}")
        for gap in NOT_PROVED:
            print(f"  not proved  {gap}")
        for line in memory_lines(recipe, mini.config, settings, arguments.processes):
            print(f"  memory      {line}")
        print(f"done in {time.perf_counter() - began:.0f} s")
    finally:
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)


def find_profile(name: str) -> Path:
    """A profile's file, from its path or its name.

    Raises
    ------
    UserMistake: there is none.
    """
    for path in (Path(name), Path("accel_configs") / f"{name}.yaml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(p.stem for p in Path("accel_configs").glob("*.yaml")))
    raise UserMistake(f"--profile: {name} is not there; in accel_configs/ are {known or 'none'}")


def rehearse(stage: Stage, steps: int) -> Iterator[str]:
    """Train, stop, go on, predict; yields what each part proved.

    Raises
    ------
    RuntimeError: something ran but did not hold.
    UserMistake: a part ended with a mistake of the user's.
    """
    recipe = stage.mini.recipe
    whole, cut = stage.run_folder("whole"), stage.run_folder("cut")
    _train(stage, "whole")
    environment, log = read_json(whole / "environment.json"), _log(whole)
    _hold(environment["processes"] == stage.processes, f"{environment['processes']} processes trained")
    sizes = next(line for line in log if line["split"] == "engine")
    losses = _losses(log)
    _hold(len(losses) == steps, f"{len(losses)} of {steps} optimizer steps were logged")
    storage = "4-bit" if recipe.model.use_4bit else recipe.model.torch_dtype
    yield (
        f"{environment['engine']} x {stage.processes}, base in {storage}: {steps} optimizer steps, "
        f"loss {losses[0]:.4f} to {losses[-1]:.4f}"
    )
    for kind in ("weights", "moments"):
        yield f"a rank holds {sizes[kind]:,} of {sizes[f'{kind}_whole']:,} {kind} (elements as stored)"
    for split in ("validation", "test"):
        file = whole / f"predictions_{split}.jsonl"
        if file.exists():
            rows, found = _rows(getattr(recipe.data, SPLITS[split])), len(_predictions(file))
            _hold(found == rows, f"{found} of {rows} {split} rows were evaluated")
            yield f"evaluation counted each of {rows} {split} rows once, in order"

    middle = steps // 2
    _train(stage, "cut", stop_after=middle)
    stopped = read_json(cut / "checkpoints" / "last" / PROGRESS)["step"]
    _hold(stopped == middle, f"the checkpoint is of step {stopped}, not {middle}")
    _train(stage, "cut")
    tolerance = TOLERANCE[recipe.model.torch_dtype]
    apart = max(abs(a - b) / abs(b) for a, b in zip(_losses(_log(cut)), losses, strict=True))
    _hold(apart <= tolerance, f"after a resume the loss is off by {apart:.1e}")
    yield f"stopped after step {middle}, resumed: the loss curve is the uninterrupted one (within {apart:.0e})"

    source = recipe.data.test_csv or recipe.data.train_csv
    output = stage.folder / "predictions.jsonl"
    _run([sys.executable, "-m", "llmcls.predict", "--run", str(cut), "--input", source, "--output", str(output)])
    plain, known = _predictions(output), _predictions(cut / "predictions_test.jsonl") if recipe.data.test_csv else {}
    _hold(len(plain) == _rows(source), f"{len(plain)} of {_rows(source)} rows were predicted")
    apart = max((abs(p - q) for row in known for p, q in zip(plain[row], known[row], strict=True)), default=0.0)
    _hold(apart <= tolerance, f"one plain process predicts other probabilities than the engine did, off by {apart:.1e}")
    yield f"one plain process predicts {len(plain)} rows from the run folder as the engine did (within {apart:.0e})"


def memory_lines(recipe: Recipe, config: Any, settings: dict[str, Any], processes: int) -> list[str]:
    """The estimate for the real model, in words."""
    if config is not None:
        shape, origin = shape_of(config, recipe), "from its configuration"
    elif (billions := model_billions(recipe.model.model_name)) is not None:
        shape, origin = guessed_shape(billions), f"guessed from the {billions:g} billion parameters in its name"
    else:
        return [f"no estimate: the shape of {recipe.model.model_name} is not known here"]
    sharding = sharding_of(settings)
    found = estimate(shape, recipe, sharding, processes)
    return [
        f"{recipe.model.model_name}, shape {origin}, {processes} GPU(s), sharded: {sharding}",
        f"about {found.total:.1f} GiB on each GPU: weights {found.weights:.2f}, gradients and optimizer "
        f"{found.state:.2f}, activations up to {found.activations:.2f}, context 1.0",
    ]


def _train(stage: Stage, name: str, stop_after: int | None = None) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(stage.profile)]
    command += ["--num_processes", str(stage.processes), "--num_machines", "1", "--machine_rank", "0"]
    if stage.settings["distributed_type"] != "NO":
        command += ["--main_process_port", "0"]
    command += ["-m", "llmcls.train", str(stage.mini.path), f"exp.run_name={name}"]
    _run(command, stop_after)


def _run(command: list[str], stop_after: int | None = None) -> None:
    """Run one part; its own words come out only when it fails."""
    environment = os.environ | {
        REHEARSAL: "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        STOP_AFTER: str(stop_after or -1),
    }  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", errors="replace")
    # Behind the launcher a run that saved itself and stopped ends with 1, as a failed one does.
    if done.returncode == 0 or (stop_after and "stopped by a signal after step" in done.stderr):
        return
    mistakes = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    if mistakes:
        raise UserMistake(mistakes[0].removeprefix("error: "))
    raise RuntimeError(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr[-4000:]}")


def _hold(condition: bool, otherwise: str) -> None:
    if not condition:
        raise RuntimeError(f"the rehearsal failed: {otherwise}")


def _log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").open(encoding="utf-8")]


def _losses(log: list[dict[str, Any]]) -> list[float]:
    by_step = {line["step"]: line["loss"] for line in log if line["split"] == "train"}
    return [by_step[step] for step in sorted(by_step)]


def _predictions(path: Path) -> dict[str, list[float]]:
    """Probabilities by row id."""
    lines = [json.loads(line) for line in path.open(encoding="utf-8")]
    return {line["id"]: list(line["probabilities"].values()) for line in lines}


def _rows(path: str) -> int:
    return len(read_table(path))


if __name__ == "__main__":
    run_command(main)
