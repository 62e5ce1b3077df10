"""Rehearse a cluster job on a laptop: ``python -m llmcls.rehearse RECIPE --profile PROFILE --processes N``.

Runs the real engine of the profile (DDP, FSDP2, ZeRO) on CPU processes over gloo, with the recipe in miniature: some
optimizer steps, an evaluation, a checkpoint, a stop and a resume, and a prediction. Then prints what the rehearsal
proved, what it cannot prove, and how much memory the real model needs on each GPU.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

from llmcls.common.command import add_recipe_arguments, begin_imports, command_parser, run_command

if __name__ == "__main__":
    # The imports below take seconds.
    begin_imports()

import datasets

from llmcls.common.files import write_text
from llmcls.common.user_error import UserError
from llmcls.engine.profiles import find_profile, read_profile, sharding_of
from llmcls.model.memory import memory_lines
from llmcls.recipe.load import load_recipe
from llmcls.rehearsal.miniature import make_miniature
from llmcls.rehearsal.stages import Stage, rehearse

NOT_PROVED = (
    "that the real model fits and how fast it is (see the estimate, and train a few steps with train.max_steps=5)",
    "the GPU kernels, NCCL and the network between machines",
    "the quality of the result: a few steps of a tiny random model say nothing about it",
)


def main(argv: list[str] | None = None) -> None:
    """Rehearse and print the results; the exit code is 1 if a result is wrong."""
    parser = command_parser("rehearse", "Rehearse a profile on CPU processes.")
    add_recipe_arguments(parser)
    parser.add_argument("--profile", required=True, help="a profile file, or a name in accel_configs/")
    parser.add_argument("--processes", type=int, default=2, help="number of CPU processes")
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps; training stops and resumes half-way")
    parser.add_argument("--keep", help="keep the miniature and its runs in this folder")
    arguments = parser.parse_intermixed_args(argv)
    datasets.disable_progress_bars()
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    profile = find_profile(arguments.profile)
    settings = read_profile(profile)
    if arguments.steps < 2 or arguments.processes < 1:
        raise UserError("--steps must be at least 2 and --processes at least 1")
    if settings["distributed_type"] == "NO" and arguments.processes > 1:
        raise UserError(f"{profile} is for one process; set --processes 1, or use accel_configs/ddp.yaml")
    folder = _kept_folder(Path(arguments.keep)) if arguments.keep else Path(tempfile.mkdtemp(prefix="rehearsal-"))
    try:
        start = time.perf_counter()
        mini = make_miniature(recipe, folder, arguments.steps)
        stage = Stage(profile, settings, arguments.processes, mini, folder)
        print(f"rehearsing {arguments.recipe} with {profile.name} on {arguments.processes} CPU process(es)", flush=True)
        for proof in rehearse(stage, arguments.steps):
            print(f"  proved      {proof}", flush=True)
        for stand_in in mini.stand_ins:
            print(f"  stand-in    {stand_in}")
        for gap in NOT_PROVED:
            print(f"  not proved  {gap}")
        for line in memory_lines(recipe, mini.config, sharding_of(settings), arguments.processes):
            print(f"  memory      {line}")
        print(f"done in {time.perf_counter() - start:.0f} s")
    finally:
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)


def _kept_folder(folder: Path) -> Path:
    """A new or empty folder, or that of an earlier rehearsal, without its results.

    Raises
    ------
    UserError
        If the folder holds anything else.
    """
    mark = folder / ".rehearsal"
    if folder.exists() and not mark.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--keep: {folder} is not empty, and holds no rehearsal; name a new folder")
    write_text(mark, "")
    shutil.rmtree(folder / "outputs", ignore_errors=True)
    return folder


if __name__ == "__main__":
    run_command(main)
