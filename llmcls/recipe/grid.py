"""Sweep grids: every combination of recipe values with every seed, as a list of tasks."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
import typing
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from llmcls.common.folder_names import LONGEST
from llmcls.common.strict_yaml import read_yaml
from llmcls.common.user_error import UserError
from llmcls.recipe.convert import convert

MOST_TASKS = 100_000
# Bytes of a run name, besides a digest and a number.
ROOM = LONGEST - 20


@dataclass
class Grid:
    """The contents of a grid file, checked.

    Attributes
    ----------
    source : str
        The grid file.
    recipe : str
        The recipe that all runs start from.
    profile : str
        The profile that all runs use.
    seeds : list of int
    grid : dict
        Values to try of each recipe key, by "section.key". A value can also be a mapping of several recipe keys that
        change together; then the name of the entry is free.
    overrides : list of str
        Overrides of the recipe for all runs; ``{seed}`` stands for the seed of the run.
    at_once : int, optional
        Maximum number of Slurm jobs that run at the same time.
    sbatch : list of str
        Further options of ``sbatch``.
    """

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
    """One run of a sweep.

    Attributes
    ----------
    values : dict
        The values of the grid's keys in this run.
    seed : int
    overrides : list of str
        All overrides of the recipe, with the seed and the run name.
    """

    values: dict[str, Any]
    seed: int
    overrides: list[str]


def load_grid(path: str | Path) -> Grid:
    """Read and check a grid file.

    Raises
    ------
    UserError
        If the file cannot be read, a key is unknown or missing, or a value has the wrong type.
    """
    try:
        raw = read_yaml(Path(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a grid: {error}") from error
    known = [f.name for f in fields(Grid) if f.name != "source"]
    if not isinstance(raw, dict) or set(raw) - set(known):
        unknown = [key for key in raw if key not in known] if isinstance(raw, dict) else [type(raw).__name__]
        raise UserError(f"{path}: {unknown[0]} is not a key of a grid; use one of {', '.join(known)}")
    for key in ("recipe", "profile", "seeds", "grid"):
        if not raw.get(key):
            raise UserError(f"{path}: {key} is missing; see slurm/grid.yaml for an example")
    hints = typing.get_type_hints(Grid)
    given = {key: value for key, value in raw.items() if value is not None}
    for key, value in given.items():
        if key == "grid":
            if not isinstance(value, dict):
                raise UserError(f"{path}: grid is {value!r}; it must be a mapping")
        elif typing.get_origin(hints[key]) is list and not isinstance(value, list):
            raise UserError(f"{path}: {key} is {value!r}; it must be a list")
        else:
            given[key] = convert(f"{path}: {key}", value, hints[key], expand=False)
    for key, values in raw["grid"].items():
        if not isinstance(key, str) or not isinstance(values, list) or not values or {} in values:
            raise UserError(f"{path}: grid.{key} is {values!r}; give a list of values, such as [1.0e-4, 2.0e-4]")
    if math.prod(len(values) for values in raw["grid"].values()) * len(raw["seeds"]) > MOST_TASKS:
        raise UserError(f"{path}: the grid has more than {MOST_TASKS} runs; give fewer values or seeds")
    return Grid(str(path), **given)


def tasks_of(grid: Grid) -> list[Task]:
    """One task for each combination of values and each seed, in the order of the file.

    The run name of a task consists of its values and its seed, so that runs of different values do not share a folder.

    Examples
    --------
    >>> grid = Grid("grid.yaml", "recipe.yaml", "cpu", [1, 2], {"train.batch_size": [4, 8]})
    >>> len(tasks_of(grid))
    4
    >>> tasks_of(grid)[1].overrides
    ['train.tracking_group=sweep-grid', 'train.batch_size=4', 'exp.seeds=[2]', 'exp.run_name=batch_size-4_seed-2']
    """
    tasks: list[Task] = []
    # Trackers show the runs of a sweep together, unless the grid says otherwise.
    group = "train.tracking_group=sweep-" + re.sub(r"[^\w.-]+", "-", Path(grid.source).stem)
    taken: set[str] = set()
    for combination in itertools.product(*grid.grid.values()):
        values = dict(zip(grid.grid, combination, strict=True))
        for seed in grid.seeds:
            words = [f"{key.rpartition('.')[2]}-{_short(value)}" for key, value in values.items()] + [f"seed-{seed}"]
            name = _shortened(re.sub(r"[^\w.+-]+", "-", "_".join(words)))
            # Values that differ only in characters that a folder name cannot have.
            numbered = (f"{name}_{i}" for i in itertools.count(2))
            name = next(n for n in itertools.chain([name], numbered) if n not in taken)
            taken.add(name)
            pairs = [pair for k, v in values.items() for pair in (v.items() if isinstance(v, dict) else [(k, v)])]
            chosen = [f"{key}={value}" for key, value in pairs]
            common = [override.replace("{seed}", str(seed)) for override in grid.overrides]
            identity = [f"exp.seeds=[{seed}]", f"exp.run_name={name}"]
            tasks.append(Task(values, seed, [group, *common, *chosen, *identity]))
    return tasks


def _shortened(name: str) -> str:
    """A name that can be that of a folder; what is cut off a long one is in a digest."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return name if len(name.encode()) <= ROOM else f"{name.encode()[:ROOM].decode(errors='ignore')}-{digest}"


def _short(value: Any) -> Any:
    """What a value is called in a run name: of keys that change together, the value of the first."""
    return next(iter(value.values())) if isinstance(value, dict) else value
