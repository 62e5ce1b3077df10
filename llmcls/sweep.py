"""Sweeps: a grid of recipe values times seeds, as numbered tasks, and the table over them.

``python -m llmcls.sweep count|task|sbatch|summary GRID`` is what `slurm/sweep.sh` calls. A grid is a small YAML file:
recipe, profile, seeds, grid (recipe key to list of values), and optionally overrides, at_once, sbatch.
"""

from __future__ import annotations

from llmcls.common.command import command_parser, run_command
from llmcls.common.user_error import UserError
from llmcls.recipe.grid import load_grid, tasks_of
from llmcls.recipe.load import load_recipe
from llmcls.results.sweep_summary import write_sweep_summary


def main(argv: list[str] | None = None) -> None:
    """Answer one question about a grid on stdout."""
    parser = command_parser("sweep", "Answer one question about a sweep; slurm/sweep.sh asks them.")
    parser.add_argument("question", choices=["count", "task", "sbatch", "summary"], help="what to print")
    parser.add_argument("grid", help="a grid YAML file, such as slurm/grid.yaml")
    parser.add_argument("index", nargs="?", type=int, help="for task: its number, from 0")
    arguments = parser.parse_args(argv)
    grid = load_grid(arguments.grid)
    tasks = tasks_of(grid)
    if arguments.question == "count":
        # The recipe of every task is read here, so that an error stops the sweep and not each of its jobs.
        for task in tasks:
            load_recipe(grid.recipe, task.overrides)
        print(len(tasks))
    elif arguments.question == "task":
        if arguments.index is None or not 0 <= arguments.index < len(tasks):
            raise UserError(f"{grid.source} has the tasks 0 to {len(tasks) - 1}, not {arguments.index}")
        print("\n".join([grid.recipe, grid.profile, *tasks[arguments.index].overrides]))
    elif arguments.question == "sbatch":
        # The last --array wins, and this one limits how many run at once.
        limit = [f"--array=0-{len(tasks) - 1}%{grid.at_once}"] if grid.at_once else []
        print("".join(f"{option}\n" for option in [*grid.sbatch, *limit]), end="")
    else:
        print(write_sweep_summary(grid))


if __name__ == "__main__":
    run_command(main)
