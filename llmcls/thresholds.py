"""Thresholds: from probabilities to decisions; tuned on validation, stored with the run.

``python -m llmcls.thresholds --run RUN --metric f1`` tunes a finished run anew, without training.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llmcls import UserMistake, run_command
from llmcls.files import read_json, write_json
from llmcls.labels import LabelSpace, as_marks, close_upwards
from llmcls.recipe import parse_objective


@dataclass
class Thresholds:
    """The probability from which a label is said to hold.

    rule: "fixed", "global" or "per_class". values: one per label, in the order of the head.
    at_least_one: a text without any label gets the one nearest to its threshold.
    metric: what they were tuned for; None for fixed ones.
    """

    rule: str
    values: list[float]
    at_least_one: bool = False
    metric: str | None = None


@dataclass
class Tuning:
    """How to tune. metric: as the recipe's ``threshold_metric``. shrinkage: positives at which a label's own
    threshold counts as much as the global one."""

    rule: str = "per_class"
    metric: str = "f1"
    shrinkage: float = 20.0
    at_least_one: bool = False
    fixed: float = field(default=0.5)


def fixed_thresholds(labels: int, value: float = 0.5, at_least_one: bool = False) -> Thresholds:
    """The same threshold for every label."""
    return Thresholds("fixed", [value] * labels, at_least_one)


def tune_thresholds(probabilities: np.ndarray, true: np.ndarray, labels: LabelSpace, tuning: Tuning) -> Thresholds:
    """Thresholds that are best on scored rows for the metric.

    Parameters
    ----------
    probabilities: float [rows, labels]. true: bool [rows, labels].

    Notes
    -----
    Each search is exact: every cut between two scores is tried. A label's own threshold t and the global one g, the
    best over all cells, become logit^-1((n logit(t) + k logit(g)) / (n + k)) with n its positives and k the
    shrinkage, so that a label with few positives does not follow their accidents.

    Single-label decisions take the most probable class: their thresholds stay at 0.5.
    """
    count = len(labels.names)
    if tuning.rule == "fixed" or labels.problem_type == "single_label_classification":
        return fixed_thresholds(count, tuning.fixed, tuning.at_least_one)
    columns = range(count) if labels.multi_label else [1]
    scores, marks = _logit(probabilities.astype(np.float64)), true.astype(bool)
    shared = best_cut(scores[:, list(columns)].ravel(), marks[:, list(columns)].ravel(), tuning.metric)
    values = [shared] * count
    if tuning.rule == "per_class" and labels.multi_label:
        for i in columns:
            positives = int(marks[:, i].sum())
            own = best_cut(scores[:, i], marks[:, i], tuning.metric) if positives else shared
            weight = positives / (positives + tuning.shrinkage) if positives else 0.0
            values[i] = weight * own + (1 - weight) * shared
    return Thresholds(tuning.rule, [float(_sigmoid(v)) for v in values], tuning.at_least_one, tuning.metric)


def best_cut(scores: np.ndarray, true: np.ndarray, metric: str) -> float:
    """The cut, midway between two scores, at which ``scores >= cut`` is best; found by sorting once.

    Parameters
    ----------
    scores: float64 [n]. true: bool [n]. metric: ``f<beta>``, or ``recall@precision=<p>``; where no cut reaches that
        precision, the one of the highest precision.

    Notes
    -----
    F_beta = (1 + b^2) TP / ((1 + b^2) TP + b^2 FN + FP) (van Rijsbergen 1979), over all n + 1 cuts.
    """
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], np.cumsum(true[order])
    # Only where the score changes can a cut lie.
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    chosen, found = last + 1, hits[last]
    kind, number = parse_objective(metric)
    if kind == "f":
        square = number * number
        # FN = positives - TP and FP = chosen - TP, so the denominator is b^2 positives + chosen.
        value = (1 + square) * found / np.maximum(square * hits[-1] + chosen, 1e-12)
    else:
        precision, recall = found / chosen, found / max(1, hits[-1])
        reached = precision >= number
        value = np.where(reached, 1 + recall, precision)
    best = int(np.argmax(value))
    if hits[-1] == 0:
        # Nothing to find: say nothing.
        return float(ordered[0] + 1.0)
    upper = ordered[last[best]]
    lower = ordered[last[best] + 1] if last[best] + 1 < len(ordered) else upper - 1.0
    return float((upper + lower) / 2)


def apply_thresholds(probabilities: np.ndarray, thresholds: Thresholds, labels: LabelSpace) -> np.ndarray:
    """Decide.

    Parameters
    ----------
    probabilities: float32 [rows, labels]

    Returns
    -------
    bool [rows, labels]. Multi-label: every label at or above its threshold, and what it implies. Binary: the second
    class at or above its threshold, else the first. Single-label: the most probable class, whatever the thresholds.
    """
    values = np.asarray(thresholds.values)
    if labels.multi_label:
        chosen = probabilities >= values
        if thresholds.at_least_one and len(chosen):
            nearest = (_logit(probabilities.astype(np.float64)) - _logit(values)).argmax(axis=1)
            none = np.flatnonzero(~chosen.any(axis=1))
            chosen[none, nearest[none]] = True
        return close_upwards(chosen, labels) if labels.hierarchy else chosen
    if labels.problem_type == "binary_classification":
        positive = probabilities[:, 1] >= values[1]
        return np.stack([~positive, positive], axis=1)
    return np.arange(probabilities.shape[1]) == probabilities.argmax(axis=1)[:, None]


def save_thresholds(path: Path, thresholds: Thresholds, label_names: list[str]) -> None:
    """Write JSON a person can read and edit: values by label name."""
    write_json(
        path,
        {
            "rule": thresholds.rule,
            "metric": thresholds.metric,
            "at_least_one": thresholds.at_least_one,
            "values": dict(zip(label_names, thresholds.values, strict=True)),
        },
    )


def load_thresholds(path: Path, label_names: list[str]) -> Thresholds:
    """Read what `save_thresholds` wrote, in the order of ``label_names``."""
    saved = read_json(path)
    values = [float(saved["values"][name]) for name in label_names]
    return Thresholds(saved["rule"], values, saved.get("at_least_one", False), saved.get("metric"))


def main(argv: list[str] | None = None) -> None:
    """Tune a finished run's thresholds anew on its validation predictions."""
    # The command stands at the end of the way, the module in its middle.
    from llmcls.recipe import load_recipe
    from llmcls.report import write_report
    from llmcls.runs import labels_of, predicted_splits, read_predictions, redecide

    parser = argparse.ArgumentParser(prog="llmcls.thresholds", description="Tune a run's thresholds without training.")
    parser.add_argument("--run", required=True, help="a run folder, outputs/.../run_0")
    parser.add_argument("--metric", default="f1", help="f1, f0.5, f2, ... or recall@precision=0.9")
    parser.add_argument("--rule", choices=["per_class", "global", "fixed"], default="per_class")
    parser.add_argument("--shrinkage", type=float, default=20.0, help="positives that count as much as the global one")
    parser.add_argument("--value", type=float, default=0.5, help="with --rule fixed")
    parser.add_argument("--at-least-one", action="store_true", help="every text gets at least one label")
    a = parser.parse_args(argv)
    try:
        parse_objective(a.metric)
    except ValueError as error:
        raise UserMistake(f"--metric is {a.metric!r}; {error}") from None
    if a.shrinkage < 0 or not 0 < a.value < 1:
        raise UserMistake("--shrinkage must be 0 or more, and --value between 0 and 1")
    run = Path(a.run)
    labels = labels_of(run)
    if a.rule != "fixed" and "validation" not in predicted_splits(run):
        raise UserMistake(f"{run} has no predictions_validation.jsonl to tune on; use --rule fixed --value 0.5")
    tuning = Tuning(a.rule, a.metric, a.shrinkage, a.at_least_one, a.value)
    if a.rule == "fixed":
        thresholds = fixed_thresholds(len(labels.names), a.value, a.at_least_one)
    else:
        found = read_predictions(run, "validation", labels)
        thresholds = tune_thresholds(found.probabilities, as_marks(found.true, labels), labels, tuning)
    before = redecide(run, labels, thresholds)
    saved = run.parent / "baselines.json"
    baselines = read_json(saved)["baselines"] if saved.exists() else None
    write_report(run, load_recipe(run / "recipe.yaml"), read_json(run / "metrics.json"), baselines)
    for name, value in zip(labels.names, thresholds.values, strict=True):
        print(f"  {name:30} {value:.4f}")
    for split, (old, new) in before.items():
        print(f"{split:10}  micro-F1 {old['f1_micro']:.4f} -> {new['f1_micro']:.4f}  ", end="")
        print(f"macro-F1 {old['f1_macro']:.4f} -> {new['f1_macro']:.4f}")


def _logit(p: np.ndarray) -> np.ndarray:
    # Probabilities are stored in float32: nearer to 0 or 1 than this they are no longer told apart.
    clipped = np.clip(p, 1e-9, 1 - 1e-9)
    return np.log(clipped) - np.log1p(-clipped)


def _sigmoid(x: float) -> float:
    return 0.5 * (1 + np.tanh(0.5 * x))


if __name__ == "__main__":
    run_command(main)
