"""Sweeps: a grid of recipe values times seeds, as numbered tasks, and the table over them.

``python -m llmcls.sweep count|task|sbatch|summary GRID`` is what `slurm/sweep.sh` asks. A grid is a small YAML:
recipe, profile, seeds, grid (recipe key to list of values), and optionally overrides, at_once, sbatch.
"""

from __future__ import annotations

import argparse
import itertools
import re
import statistics
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from llmcls import UserMistake, run_command
from llmcls.files import read_json, write_json, write_text
from llmcls.metrics import metric_direction
from llmcls.recipe import Recipe, load_recipe
from llmcls.report import experiment_folder


@dataclass
class Grid:
    """A sweep's file, checked."""

    source: str
    recipe: str
    profile: str
    seeds: list[int]
    grid: dict[str, list[Any]]
    overrides: list[str] = field(default_factory=list)
    at_once: int | None = None
    sbatch: list[str] = field(default_factory=list)


@dataclass
class Task:
    """One run of a sweep. values: what the grid gives it."""

    values: dict[str, Any]
    seed: int
    overrides: list[str]


def load_grid(path: str | Path) -> Grid:
    """Read a grid.

    Raises
    ------
    UserMistake: unreadable, a key that is not known or missing, a value of the wrong kind.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserMistake(f"{path} cannot be read as a grid: {str(error).splitlines()[0]}") from error
    known = [f.name for f in fields(Grid) if f.name != "source"]
    if not isinstance(raw, dict) or set(raw) - set(known):
        odd = sorted(set(raw) - set(known)) if isinstance(raw, dict) else [type(raw).__name__]
        raise UserMistake(f"{path}: {odd[0]} is no key of a grid; known are {', '.join(known)}")
    for key in ("recipe", "profile", "seeds", "grid"):
        if not raw.get(key):
            raise UserMistake(f"{path}: {key} is missing; see slurm/grid.yaml for an example")
    kinds = {"seeds": list, "grid": dict, "overrides": list, "sbatch": list}
    for key, kind in kinds.items():
        if raw.get(key) is not None and not isinstance(raw[key], kind):
            raise UserMistake(f"{path}: {key} is {raw[key]!r}; it must be a {'list' if kind is list else 'mapping'}")
    for key, values in raw["grid"].items():
        if not isinstance(values, list) or not values:
            raise UserMistake(f"{path}: grid.{key} is {values!r}; give a list of values, as [1.0e-4, 2.0e-4]")
    return Grid(str(path), **{key: value for key, value in raw.items() if value is not None})


def tasks_of(grid: Grid) -> list[Task]:
    """Every combination with every seed, in the order of the file; each with a run name of its own."""
    tasks = []
    for combination in itertools.product(*grid.grid.values()):
        values = dict(zip(grid.grid, combination, strict=True))
        for seed in grid.seeds:
            words = [f"{key.rpartition('.')[2]}-{value}" for key, value in values.items()] + [f"seed-{seed}"]
            name = re.sub(r"[^\w.+-]+", "-", "_".join(words))
            chosen = [f"{key}={value}" for key, value in values.items()]
            own = [f"exp.seeds=[{seed}]", f"exp.run_name={name}"]
            tasks.append(Task(values, seed, [*grid.overrides, *chosen, *own]))
    return tasks


def write_sweep_summary(grid: Grid) -> str:
    """Write ``sweep-<grid>.md`` and ``.json`` to the recipe's output root, best combination first; returns the table.

    A combination's figures are the mean and sample standard deviation over its seeds. It is ranked on validation,
    never on test, when there is a validation set.
    """
    base = load_recipe(grid.recipe, grid.overrides)
    metric = base.train.metric_for_best_model
    combinations: dict[str, dict[str, Any]] = {}
    for task in tasks_of(grid):
        entry = combinations.setdefault(
            repr(task.values), {"values": task.values, "validation": [], "test": [], "seeds": [], "missing": []}
        )
        recipe = load_recipe(grid.recipe, task.overrides)
        found = experiment_folder(recipe) / "run_0" / "metrics.json"
        if not found.exists():
            entry["missing"].append(task.seed)
            continue
        metrics = read_json(found)
        entry["seeds"].append(task.seed)
        for split in ("validation", "test"):
            if split in metrics:
                entry[split].append(metrics[split][metric])
    ranked = sorted(combinations.values(), key=lambda e: _rank(e, base))
    keys = list(grid.grid)
    lines = [
        f"# sweep {Path(grid.source).stem}: {metric}",
        "",
        "| " + " | ".join(k.rpartition(".")[2] for k in keys) + " | seeds | validation | test | not finished |",
        "|" + "---|" * (len(keys) + 4),
    ]
    for entry in ranked:
        cells = [str(entry["values"][k]) for k in keys] + [", ".join(map(str, entry["seeds"]))]
        cells += [_mean(entry["validation"]), _mean(entry["test"]), ", ".join(f"seed {s}" for s in entry["missing"])]
        lines.append("| " + " | ".join(cells) + " |")
    text = "\n".join(lines) + "\n"
    root = Path(base.exp.output_root) / f"sweep-{Path(grid.source).stem}"
    write_text(root.with_suffix(".md"), text)
    write_json(root.with_suffix(".json"), {"metric": metric, "combinations": ranked})
    return text


def _rank(entry: dict[str, Any], recipe: Recipe) -> float:
    values = entry["validation"] or entry["test"]
    return -metric_direction(recipe.train.metric_for_best_model) * statistics.fmean(values) if values else float("inf")


def _mean(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{spread}"


def main(argv: list[str] | None = None) -> None:
    """Answer one question about a grid on stdout."""
    parser = argparse.ArgumentParser(prog="llmcls.sweep", description=__doc__.split("\n")[0])
    parser.add_argument("question", choices=["count", "task", "sbatch", "summary"])
    parser.add_argument("grid")
    parser.add_argument("index", nargs="?", type=int, help="for task: its number, from 0")
    arguments = parser.parse_args(argv)
    grid = load_grid(arguments.grid)
    tasks = tasks_of(grid)
    if arguments.question == "count":
        # Every task's recipe is read here, so that a mistake stops the sweep and not each of its jobs.
        for task in tasks:
            load_recipe(grid.recipe, task.overrides)
        print(len(tasks))
    elif arguments.question == "task":
        if arguments.index is None or not 0 <= arguments.index < len(tasks):
            raise UserMistake(f"{grid.source} has the tasks 0 to {len(tasks) - 1}, not {arguments.index}")
        print("\n".join([grid.recipe, grid.profile, *tasks[arguments.index].overrides]))
    elif arguments.question == "sbatch":
        # The last --array wins, and this one limits how many run at once.
        limit = [f"--array=0-{len(tasks) - 1}%{grid.at_once}"] if grid.at_once else []
        print("".join(f"{option}\n" for option in [*grid.sbatch, *limit]), end="")
    else:
        print(write_sweep_summary(grid))


if __name__ == "__main__":
    run_command(main)
