"""Compare two runs: ``python -m llmcls.compare A B`` says whether B is better than A, worse, or the same but for noise.

A and B are run folders, or folders of runs (then all their seeds count). Their test rows are resampled together; a
difference is believed when 95 % of the resamples agree on its sign, and never between seeds of one recipe.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from llmcls import UserMistake, run_command
from llmcls.intervals import NAMES, paired_differences, resampled
from llmcls.labels import LabelSpace, as_marks
from llmcls.runs import labels_of, predicted_splits, read_predictions, runs_in


@dataclass
class Verdict:
    """Of one metric. low, high: the 95 % interval of B - A. p: two-sided, of no difference."""

    metric: str
    first: float
    second: float
    low: float
    high: float
    p: float
    word: str


def main(argv: list[str] | None = None) -> None:
    """Print the verdicts."""
    parser = argparse.ArgumentParser(prog="llmcls.compare", description="Is run B better than run A, or is it noise?")
    parser.add_argument("first", metavar="A")
    parser.add_argument("second", metavar="B")
    parser.add_argument("--split", choices=["validation", "test"], help="default: test where both have it")
    parser.add_argument("--resamples", type=int, default=2000)
    a = parser.parse_args(argv)
    if a.resamples < 100:
        raise UserMistake("--resamples must be at least 100")
    for line in report_lines(Path(a.first), Path(a.second), a.split, a.resamples):
        print(line)


def report_lines(first: Path, second: Path, split: str | None, resamples: int) -> list[str]:
    """What is printed."""
    sides = runs_in(first), runs_in(second)
    split = split or _common_split(*sides)
    same = same_recipe(*sides)
    verdicts, rows = compare(*sides, split, resamples, same)
    lines = [f"{split}, {rows} rows in both; A: {first} ({len(sides[0])} run(s)), B: {second} ({len(sides[1])} run(s))"]
    for v in verdicts:
        lines.append(
            f"{v.metric:9}  A {v.first:.4f}  B {v.second:.4f}  B - A {v.second - v.first:+.4f} "
            f"[{v.low:+.4f}, {v.high:+.4f}]  p {v.p:.3f}  {v.word}"
        )
    if same:
        lines.append("both are the same recipe with other seeds: the difference is the chance of a seed, not a merit")
    elif min(map(len, sides)) == 1:
        lines.append("a side has one seed only: the interval holds the chance of the rows, not that of the seed")
    return lines


def compare(first: list[Path], second: list[Path], split: str, resamples: int, same: bool) -> tuple[list[Verdict], int]:
    """Verdicts on every metric of `NAMES`, and how many rows they rest on.

    Raises
    ------
    UserMistake: different labels, or rows that are not the same.
    """
    labels = labels_of(first[0])
    for run in (*first, *second):
        if labels_of(run).names != labels.names:
            raise UserMistake(f"{run} has other labels than {first[0]}; only runs on the same labels compare")
    true, decisions = _aligned([*first, *second], split, labels)
    sides = decisions[: len(first)], decisions[len(first) :]
    differences = paired_differences(true, *sides, resamples=resamples)
    once = np.ones((1, len(true)), dtype=np.int64)
    verdicts = []
    means = [{n: float(np.mean([resampled(once, true, d)[n][0] for d in side])) for n in NAMES} for side in sides]
    for name in NAMES:
        low, high = np.percentile(differences[name], [2.5, 97.5])
        # The share of resamples on the other side of zero, never quite none (Davison & Hinkley 1997, equation 4.11).
        wrong = min((differences[name] <= 0).sum(), (differences[name] >= 0).sum())
        p = min(1.0, 2 * (wrong + 1) / (resamples + 1))
        word = "noise" if same or p > 0.05 or low <= 0 <= high else ("B is better" if low > 0 else "B is worse")
        verdicts.append(Verdict(name, means[0][name], means[1][name], float(low), float(high), float(p), word))
    return verdicts, len(true)


def same_recipe(first: list[Path], second: list[Path]) -> bool:
    """Whether all runs learned the same from the same, but for the seed."""

    def learned(run: Path) -> dict[str, Any]:
        recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
        return {section: recipe[section] for section in ("data", "model", "train")}

    recipes = [learned(run) for run in (*first, *second)]
    return all(recipe == recipes[0] for recipe in recipes)


def _aligned(runs: list[Path], split: str, labels: LabelSpace) -> tuple[np.ndarray, list[np.ndarray]]:
    """True labels, and each run's decisions, bool [rows, labels], in the order of the first run's ids."""
    found = [read_predictions(run, split, labels) for run in runs]
    ids = found[0].ids
    decisions = []
    for run, predictions in zip(runs, found, strict=True):
        row = {row_id: i for i, row_id in enumerate(predictions.ids)}
        if row.keys() != set(ids):
            raise UserMistake(f"{run} predicted other {split} rows than {runs[0]}; only runs on the same rows compare")
        order = [row[i] for i in ids]
        if not np.array_equal(predictions.true[order], found[0].true):
            raise UserMistake(f"{run} has other true labels for the {split} rows than {runs[0]}")
        decisions.append(predictions.predicted[order])
    return as_marks(found[0].true, labels), decisions


def _common_split(first: list[Path], second: list[Path]) -> str:
    for split in ("test", "validation"):
        if all(split in predicted_splits(run) for run in (*first, *second)):
            return split
    raise UserMistake("the runs have no split predicted in common; name data.test_csv in both recipes")


if __name__ == "__main__":
    run_command(main)
