"""Whether a run can be had again: what differs around it, and what differs between it and its repetition."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from llmcls.common.files import read_json
from llmcls.common.manifest import CHECKSUM
from llmcls.common.user_error import UserError
from llmcls.recipe.schema import Recipe
from llmcls.results.run_folder import ExperimentFolder, RunFolder

# Of metrics.json: what a clock says.
_TIMES = ("training/seconds", "training/samples_per_second", "training/tokens_per_second")
# Differences that are named; the others are counted.
SHOWN = 8


@dataclass(frozen=True)
class Outcome:
    """What differs between a run and its repetition.

    Attributes
    ----------
    differences : list of str
        One sentence each; empty if weights, metrics and predictions are equal to the last bit.
    largest : dict
        The largest absolute difference, by what was compared: "weights", "metrics", "predictions_test", ...
    compared : dict of str to str
        How much was compared.
    """

    differences: list[str] = field(default_factory=list)
    largest: dict[str, float] = field(default_factory=dict)
    compared: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where a run is trained again.

    Attributes
    ----------
    output_root : Path
    run_name : str
        For ``exp.run_name``.
    run : RunFolder
    """

    output_root: Path
    run_name: str
    run: RunFolder

    @property
    def report(self) -> Path:
        """What was compared, for programs."""
        return self.run.path.parent / "reproduction.json"


def new_place(run: RunFolder, recipe: Recipe) -> Place:
    """The place for the repetition of a run: beside it, and not used by another repetition that is complete.

    Parameters
    ----------
    run : RunFolder
    recipe : Recipe
        Of this run, with its seed only.
    """
    path = run.path.absolute()
    root = path.parents[3 if recipe.exp.run_name else 2] if len(path.parents) > 3 else path.parent
    if _experiment(recipe, root, recipe.exp.run_name).path != path.parent:
        # The folder was copied to another place.
        root = path.parent
    start = f"{recipe.exp.run_name}-" if recipe.exp.run_name else ""
    for number in itertools.count(1):
        name = f"{start}{path.name}-again{'' if number == 1 else f'-{number}'}"
        place = Place(root, name, _experiment(recipe, root, name).run(0))
        if not place.run.metrics.exists() or not place.report.exists() or "equal" not in read_json(place.report):
            return place
    raise AssertionError("counting does not end")


def _experiment(recipe: Recipe, root: Path, run_name: str | None) -> ExperimentFolder:
    exp = replace(recipe.exp, output_root=str(root), run_name=run_name)
    return ExperimentFolder.of(replace(recipe, exp=exp))


def changed_surroundings(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs around a run, one line each.

    Parameters
    ----------
    then : dict
        The content of environment.json.
    now : dict
        The same of today. What it does not have is not compared.

    Returns
    -------
    list of str
    """
    lines = []
    for key, value in now.items():
        if key not in then:
            lines.append(f"{_words(key)}: {_shown(value)} now; the run did not note it")
        elif isinstance(value, dict) and isinstance(then[key], dict):
            names = [*then[key], *(name for name in value if name not in then[key])]
            found = [(f"{_words(key)} {name}", then[key].get(name), value.get(name)) for name in names]
            lines += [f"{name}: {_shown(old)} then, {_shown(new)} now" for name, old, new in found if old != new]
        elif then[key] != value:
            lines.append(f"{_words(key)}: {_shown(then[key])} then, {_shown(value)} now")
    return lines


def compare_runs(then: RunFolder, now: RunFolder) -> Outcome:
    """Compare final weights, metrics and predictions of two finished runs.

    Parameters
    ----------
    then, now : RunFolder

    Returns
    -------
    Outcome

    Raises
    ------
    UserError
        If a file of one of them is damaged.
    """
    outcome = Outcome()
    _compare_weights(then, now, outcome)
    _compare_numbers("metrics", _numbers(read_json(then.metrics)), _numbers(read_json(now.metrics)), outcome)
    for split in dict.fromkeys([*then.predicted_splits(), *now.predicted_splits()]):
        name = then.predictions(split).stem
        _compare_predictions(name, then.predictions(split), now.predictions(split), outcome)
    return outcome


def outcome_lines(outcome: Outcome) -> list[str]:
    """An outcome in words, one line for each thing that was compared, and then the differences."""
    lines = []
    for name, count in outcome.compared.items():
        largest = outcome.largest.get(name, 0.0)
        equal = not any(line.startswith(f"{name}: ") for line in outcome.differences)
        what = "equal to the last bit" if equal else f"not equal; the largest difference is {largest:.3g}"
        lines.append(f"{name}: {count}, {what}")
    return lines + [f"  {line}" for line in outcome.differences]


def _compare_weights(then: RunFolder, now: RunFolder, outcome: Outcome) -> None:
    weights = [_weights(run) for run in (then, now)]
    outcome.compared["weights"] = f"{sum(tensor.numel() for tensor in weights[0].values()):,} numbers"
    differing = []
    for name in dict.fromkeys([*weights[0], *weights[1]]):
        old, new = (found.get(name) for found in weights)
        if old is None or new is None or old.shape != new.shape or old.dtype != new.dtype:
            differing.append((math.inf, name))
        elif not _same_bits(old, new):
            differing.append((float((old.double() - new.double()).abs().max()), name))
    _note("weights", differing, outcome)


def _compare_numbers(what: str, then: dict[str, Any], now: dict[str, Any], outcome: Outcome) -> None:
    outcome.compared[what] = f"{len(then):,} numbers"
    differing = []
    for name in dict.fromkeys([*then, *now]):
        old, new = then.get(name), now.get(name)
        if old == new and (name in then) == (name in now):
            continue
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (old, new))
        differing.append((abs(old - new) if numbers else math.inf, name))  # type: ignore[operator]
    _note(what, differing, outcome)


def _compare_predictions(what: str, then: Path, now: Path, outcome: Outcome) -> None:
    """Compare two files line by line, so that memory stays bounded; only lines that differ are parsed."""
    rows, differing = 0, []
    if not (then.is_file() and now.is_file()):
        outcome.compared[what] = "no rows"
        _note(what, [(math.inf, (now if then.is_file() else then).name)], outcome)
        return
    with then.open(encoding="utf-8", errors="replace") as old, now.open(encoding="utf-8", errors="replace") as new:
        for texts in itertools.zip_longest(old, new):
            rows += 1
            if texts[0] == texts[1]:
                continue
            if None in texts:
                differing.append((math.inf, f"row {rows}"))
                continue
            (name, was, labels), (other, now_is, others) = _row(texts[0], then), _row(texts[1], now)
            if name != other or was.keys() != now_is.keys():
                differing.append((math.inf, f"row {rows}"))
                continue
            size = max(abs(was[label] - now_is[label]) for label in was)
            differing.append((size, f"{name}{'' if labels == others else ', with other labels,'}"))
    outcome.compared[what] = f"{rows:,} rows"
    _note(what, differing, outcome)


def _note(what: str, differing: list[tuple[float, str]], outcome: Outcome) -> None:
    """Add the largest differences of one thing, and how many more there are."""
    ordered = sorted(differing, key=lambda found: -found[0] if not math.isnan(found[0]) else -math.inf)
    for size, name in ordered[:SHOWN]:
        by = "is not there, or of another kind" if math.isinf(size) else f"differs by {size:.3g}"
        outcome.differences.append(f"{what}: {name} {by}")
    if len(ordered) > SHOWN:
        outcome.differences.append(f"{what}: {len(ordered) - SHOWN} more")
    if ordered:
        outcome.largest[what] = ordered[0][0]


def _same_bits(old: torch.Tensor, new: torch.Tensor) -> bool:
    """Whether two tensors of one shape and type are equal, also where they hold what is not a number."""
    return torch.equal(old.reshape(-1).view(torch.uint8), new.reshape(-1).view(torch.uint8))


def _weights(run: RunFolder) -> dict[str, torch.Tensor]:
    """All tensors of the saved model.

    Raises
    ------
    UserError
        If there are none, or a file is damaged.
    """
    files = sorted(run.model.glob("*.safetensors"))
    if not files:
        raise UserError(f"{run.model} holds no weights; restore it, or train the run again")
    found: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            found |= load_file(file)
        except Exception as error:
            # The exception of safetensors is not a subclass of OSError.
            raise UserError(f"{file} is damaged ({type(error).__name__}); restore it") from error
    return found


def _numbers(value: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested lists and dictionaries, without times, by names joined with "/"."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        return {} if prefix in _TIMES else {prefix: value}
    found: dict[str, Any] = {}
    for name, inner in items:
        found |= _numbers(inner, f"{prefix}/{name}" if prefix else str(name))
    return found


def _row(text: str, path: Path) -> tuple[str, dict[str, float], list[str]]:
    """Id, probabilities and labels of a line of predictions."""
    try:
        line = json.loads(text)
        return line["id"], {name: float(p) for name, p in line["probabilities"].items()}, line["labels"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path} is damaged; restore it") from None


def _words(key: str) -> str:
    return key.replace("_", " ")


def _shown(value: Any) -> str:
    """A value in a line: a file by its size and the start of its checksum."""
    if isinstance(value, dict) and CHECKSUM in value:
        return f"{value.get('bytes'):,} bytes ({str(value[CHECKSUM])[:12]})"
    return "none" if value is None else str(value)
