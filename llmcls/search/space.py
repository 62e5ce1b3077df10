"""The space of a search: which recipe keys are tried, and with which values.

A space is a YAML file. A key has a list of values, or a range ``{low, high}`` with ``log: true`` or a ``step``:

    train.learning_rate: {low: 1.0e-4, high: 2.0e-3, log: true}
    train.num_train_epochs: {low: 2, high: 6}
    model.lora_r: [4, 8, 16, 32]
    loss: [{train.loss: cross_entropy}, {train.loss: focal, train.focal_gamma: 2.0}]

As in a grid, a value can be a mapping of several recipe keys that change together; then the name is free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from llmcls.common.strict_yaml import read_yaml
from llmcls.common.user_error import UserError
from llmcls.recipe.load import load_recipe

# What identifies a trial, and what it is measured by. A search that changed these would compare unlike things.
FIXED = ("exp.seeds", "exp.run_name", "exp.output_root", "train.metric_for_best_model", "data.val_csv", "data.test_csv")
RANGE_KEYS = {"low", "high", "log", "step"}


@dataclass(frozen=True)
class Space:
    """What a search tries.

    Attributes
    ----------
    source : str
        The file.
    distributions : dict
        The distribution of each entry by name. The choices of a list are its values as YAML, on one line.
    """

    source: str
    distributions: dict[str, BaseDistribution]

    def overrides(self, params: dict[str, Any]) -> list[str]:
        """The overrides of the recipe for the values of a trial.

        Examples
        --------
        >>> Space("space.yaml", {"model.lora_r": CategoricalDistribution(["4", "8"])}).overrides({"model.lora_r": "8"})
        ['model.lora_r=8']
        """
        found = []
        for name, value in params.items():
            chosen = yaml.safe_load(value) if isinstance(self.distributions[name], CategoricalDistribution) else value
            pairs = chosen if isinstance(chosen, dict) else {name: chosen}
            found += [f"{key}={_on_one_line(one)}" for key, one in pairs.items()]
        return found


def load_space(path: str | Path, recipe: str, overrides: list[str]) -> Space:
    """Read a space, and check that a recipe accepts each of its values.

    Parameters
    ----------
    path : str or Path
    recipe : str
        The recipe file that the search starts from.
    overrides : list of str
        Its overrides.

    Raises
    ------
    UserError
        If the file cannot be read, or a key or a value of it cannot be tried.
    """
    try:
        raw = read_yaml(Path(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a space: {error}") from error
    if not isinstance(raw, dict) or not raw:
        raise UserError(f"{path}: a space has lines such as `train.learning_rate: {{low: 1.0e-4, high: 1.0e-3}}`")
    space = Space(str(path), {str(name): _distribution(f"{path}: {name}", value) for name, value in raw.items()})
    for name, distribution in space.distributions.items():
        for value in _extremes(distribution):
            changed = space.overrides({name: value})
            fixed = next((key for key in FIXED for c in changed if _names(c.partition("=")[0], key)), None)
            if fixed:
                raise UserError(f"{path}: {name}: a search cannot change {fixed}; set it in the recipe")
            try:
                load_recipe(recipe, [*overrides, *changed])
            except UserError as error:
                raise UserError(f"{path}: {str(error).removeprefix('command line: ')}") from error
    return space


def _distribution(where: str, value: Any) -> BaseDistribution:
    """The distribution of one entry."""
    if isinstance(value, list) and value:
        return CategoricalDistribution(list(dict.fromkeys(_on_one_line(one) for one in value)))
    if not isinstance(value, dict) or not {"low", "high"} <= set(value) or set(value) - RANGE_KEYS:
        shown = _on_one_line(value)[:60]
        raise UserError(f"{where} is {shown}; give a list of values, or a range such as {{low: 1, high: 4}}")
    value = _plain(value)
    low, high, log, step = value["low"], value["high"], value.get("log", False), value.get("step")
    numbers = [low, high] + ([] if step is None else [step])
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers):
        raise UserError(f"{where}: low, high and step must be numbers")
    if not isinstance(log, bool) or not low < high or (log and low <= 0) or (step is not None and (log or step <= 0)):
        raise UserError(f"{where}: low must be below high; with log: true, low is above 0 and there is no step")
    if all(isinstance(n, int) for n in numbers):
        return IntDistribution(low, high, log=log, step=step or 1)
    return FloatDistribution(float(low), float(high), log=log, step=None if step is None else float(step))


def _extremes(distribution: BaseDistribution) -> list[Any]:
    """The values of an entry to try on the recipe: all choices, or the ends of a range."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return [distribution.low, distribution.high]


def _names(given: str, key: str) -> bool:
    """Whether an override names a recipe key, with or without its section."""
    return given in (key, key.partition(".")[2])


def _on_one_line(value: Any) -> str:
    """A value as YAML, as on the command line."""
    text: str = yaml.safe_dump(_plain(value), default_flow_style=True, width=10**9, sort_keys=False)
    return text.removesuffix("...\n").strip()


def _plain(value: Any) -> Any:
    """A value without the numbers that remember how they were written, which YAML cannot write."""
    if isinstance(value, dict):
        return {_plain(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, float) else value
