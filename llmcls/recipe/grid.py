"""Sweep grids: recipe values times seeds, as numbered tasks."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from llmcls.common.user_error import UserError


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
    UserError: unreadable, a key that is not known or missing, a value of the wrong kind.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as a grid: {str(error).splitlines()[0]}") from error
    known = [f.name for f in fields(Grid) if f.name != "source"]
    if not isinstance(raw, dict) or set(raw) - set(known):
        odd = sorted(set(raw) - set(known)) if isinstance(raw, dict) else [type(raw).__name__]
        raise UserError(f"{path}: {odd[0]} is no key of a grid; known are {', '.join(known)}")
    for key in ("recipe", "profile", "seeds", "grid"):
        if not raw.get(key):
            raise UserError(f"{path}: {key} is missing; see slurm/grid.yaml for an example")
    kinds = {"seeds": list, "grid": dict, "overrides": list, "sbatch": list}
    for key, kind in kinds.items():
        if raw.get(key) is not None and not isinstance(raw[key], kind):
            raise UserError(f"{path}: {key} is {raw[key]!r}; it must be a {'list' if kind is list else 'mapping'}")
    for key, values in raw["grid"].items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{path}: grid.{key} is {values!r}; give a list of values, as [1.0e-4, 2.0e-4]")
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
