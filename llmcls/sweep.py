"""Sweeps: every combination of a grid of recipe values with every seed, as numbered tasks, and a table of the results.

`slurm/sweep.sh` calls ``python -m llmcls.sweep count|task|sbatch|summary GRID``. A grid is a YAML file with the keys
recipe, profile, seeds, grid (recipe key to list of values), and optionally overrides, at_once and sbatch.
"""

from __future__ import annotations

from llmcls.common.command import command_parser, run_command
from llmcls.common.user_error import UserError
from llmcls.recipe.grid import load_grid, tasks_of
from llmcls.recipe.load import load_recipe
from llmcls.results.sweep_summary import write_sweep_summary


def main(argv: list[str] | None = None) -> None:
    """Print the answer to one question about a grid."""
    parser = command_parser("sweep", "Answer one question about a sweep, for slurm/sweep.sh.")
    parser.add_argument("question", choices=["count", "task", "sbatch", "summary"], help="what to print")
    parser.add_argument("grid", help="a grid YAML file, such as slurm/grid.yaml")
    parser.add_argument("index", nargs="?", type=int, help="with task: its number, from 0")
    arguments = parser.parse_args(argv)
    grid = load_grid(arguments.grid)
    tasks = tasks_of(grid)
    if arguments.question == "count":
        # Load the recipe of every task, so that an error stops the sweep before any job is submitted.
        for task in tasks:
            load_recipe(grid.recipe, task.overrides)
        print(len(tasks))
    elif arguments.question == "task":
        if arguments.index is None or not 0 <= arguments.index < len(tasks):
            raise UserError(f"{grid.source} has no task {arguments.index}; its tasks are 0 to {len(tasks) - 1}")
        print("\n".join([grid.recipe, grid.profile, *tasks[arguments.index].overrides]))
    elif arguments.question == "sbatch":
        # sbatch uses the last --array; this one also limits how many tasks run at the same time.
        limit = [f"--array=0-{len(tasks) - 1}%{grid.at_once}"] if grid.at_once else []
        print("".join(f"{option}\n" for option in [*grid.sbatch, *limit]), end="")
    else:
        print(write_sweep_summary(grid))


if __name__ == "__main__":
    run_command(main)
