"""How many labels do I need? ``python -m llmcls.curve RECIPE --sizes 100,200,400,all [--seeds 1,2,3] [key=value ...]``.

Trains the recipe on nested samples of growing size, beside the linear probe and TF-IDF, draws the learning curve, and
says whether more labels would help. Run the same command again to resume. On a cluster, ``--plan-only`` writes the grid
that ``slurm/sweep.sh`` runs as an array; then ``--draw-only`` draws what is finished.
"""

from __future__ import annotations

import dataclasses
import sys

import yaml

from llmcls.common.command import add_recipe_arguments, command_parser, run_command
from llmcls.common.files import write_text
from llmcls.common.parts import run_part
from llmcls.common.signals import watch_signals
from llmcls.common.user_error import UserError
from llmcls.data.holdout import rows_of_split
from llmcls.data.tables import read_table
from llmcls.engine.profiles import find_profile
from llmcls.recipe.grid import Grid, tasks_of
from llmcls.recipe.load import load_recipe
from llmcls.results.curve import curve_of, write_curve
from llmcls.results.run_folder import ExperimentFolder
from llmcls.training.curve_plan import CurveRequest, curve_grid, parse_sizes


def main(argv: list[str] | None = None) -> None:
    """Train what is missing, and draw the curve."""
    parser = command_parser("curve", "How many labels do I need? Train on growing samples and draw the learning curve.")
    add_recipe_arguments(parser)
    parser.add_argument("--sizes", required=True, help="numbers of labelled rows, such as 100,200,400,all")
    parser.add_argument("--seeds", default="1,2,3", help="each draws its own sample; default: 1,2,3")
    parser.add_argument("--min-steps", type=int, default=100, help="optimizer steps of a run at least; default: 100")
    parser.add_argument("--worth", type=float, default=0.01, help="gain for which twice the labels pay; default: 0.01")
    parser.add_argument("--profile", help="train with `accelerate launch` and this profile; default: in one process")
    parser.add_argument("--name", default="curve", help="name of the runs and files; default: curve")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--plan-only", action="store_true", help="write the grid for slurm/sweep.sh, and train nothing")
    only.add_argument("--draw-only", action="store_true", help="draw the runs that are finished, and train nothing")
    arguments = parser.parse_intermixed_args(argv)
    watch_signals()
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    seeds = [word.strip() for word in arguments.seeds.split(",")]
    if not all(word.isdigit() for word in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds is {arguments.seeds!r}; give different whole numbers, separated by commas")
    rows = rows_of_split(recipe, "train")
    count = len(read_table(recipe.data.train_csv, "data.train_csv", recipe.data)) if rows is None else len(rows)
    sizes = parse_sizes(arguments.sizes, count)
    profile = str(find_profile(arguments.profile)) if arguments.profile else "accel_configs/cpu.yaml"
    grid = curve_grid(
        CurveRequest(
            recipe, arguments.overrides, profile, sizes, [int(s) for s in seeds], arguments.min_steps, arguments.name
        )
    )
    folder = ExperimentFolder.of(dataclasses.replace(recipe, exp=dataclasses.replace(recipe.exp, run_name=None))).path
    plan = folder / f"{arguments.name}.yaml"
    values = {key: value for key, value in dataclasses.asdict(grid).items() if key != "source" and value is not None}
    write_text(plan, yaml.safe_dump(values, sort_keys=False))
    if arguments.plan_only:
        print(f"{len(tasks_of(grid))} runs; on a cluster: sbatch slurm/sweep.sh {plan}")
        return
    if not arguments.draw_only:
        _train(grid, arguments.profile)
    print(write_curve(curve_of(grid, arguments.worth), folder, arguments.name))
    print(f"curve: {folder / arguments.name}.png, .svg, .json, .md")


def _train(grid: Grid, profile: str | None) -> None:
    """Train every run that is not finished, each in a process of its own.

    Raises
    ------
    UserError
        If a run fails; its own error is above.
    """
    tasks = tasks_of(grid)
    launcher = ["-m", "accelerate.commands.launch", "--config_file", grid.profile] if profile else []
    for number, task in enumerate(tasks, start=1):
        run = ExperimentFolder.of(load_recipe(grid.recipe, task.overrides)).run(0)
        print(f"run {number} of {len(tasks)}: {run.path.parent.name}{', finished' if run.finished else ''}", flush=True)
        if not run.finished:
            command = [sys.executable, *launcher, "-m", "llmcls.train", grid.recipe, *task.overrides]
            run_part(command, run.path.parent.name)


if __name__ == "__main__":
    run_command(main)
