"""The plots of a report: what was logged, precision over recall, calibration, and the confusion matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup
from scipy import sparse

from llmcls.evaluation.bootstrap import Marks
from llmcls.evaluation.diagrams import confusion_matrix, precision_recall, reliability
from llmcls.recipe.defaults import selection_metric
from llmcls.recipe.metric_names import in_words
from llmcls.results.predictions import Predictions, cells_of
from llmcls.results.report_charts import Axes, Line, Point, heat_map, line_chart
from llmcls.results.report_source import SeedResult, Source

# Labels with a curve of their own, and classes of a heat map.
SHOWN_CURVES = 12
SHOWN_CLASSES = 100
# Rows times labels of a curve. With more, it is drawn from some of the rows, and says so.
MOST_CELLS = 10_000_000


def curves(source: Source) -> list[Markup]:
    """Loss, the metric that selects the best model, learning rate and speed, over optimizer steps, all seeds."""
    train = source.recipe.train
    metric = selection_metric(source.recipe)
    plain = train.loss == "cross_entropy" and not train.label_smoothing and train.pos_weight is None
    plain = plain and not source.recipe.data.soft_labels
    names = ("train", "validation") if plain else ("train (loss of the recipe)", "validation (cross-entropy)")
    losses: list[Line] = []
    values: list[Line] = []
    halves: list[Line] = []
    for number, seed in enumerate(source.seeds):
        name = f"seed {seed.seed}" if len(source.seeds) > 1 else in_words(metric)
        losses.append(Line(names[0], _points(seed, "train", "loss"), 0))
        losses.append(Line(names[1], _points(seed, "validation", "loss"), 1, marked=True))
        values.append(Line(name, _points(seed, "validation", metric), number, marked=True))
        half = [(line["step"], line["at_half"][metric]) for line in _with_half(source, seed, metric)]
        if half:
            halves.append(Line("at 0.5", half, number, dashed=True))
    found = [
        line_chart(losses, Axes("Loss", "optimizer step", "Loss")),
        line_chart(
            values + halves, Axes(f"Validation {in_words(metric)}", "optimizer step", f"Validation {in_words(metric)}")
        ),
    ]
    for key, title, unit in (
        ("learning_rate", "Learning rate", "Learning rate"), ("samples_per_second", "Speed", "texts per second"),
    ):  # fmt: skip
        lines = [
            Line(f"seed {seed.seed}", _points(seed, "train", key), i if len(source.seeds) > 1 else 0)
            for i, seed in enumerate(source.seeds)
        ]
        found.append(line_chart(lines, Axes(title, "optimizer step", unit)))
    return [chart for chart in found if chart]


def _points(seed: SeedResult, split: str, name: str) -> list[Point]:
    """A logged number over optimizer steps."""
    return [(line["step"], line[name]) for line in seed.logged(split) if line.get(name) is not None]


def _with_half(source: Source, seed: SeedResult, metric: str) -> list[dict[str, Any]]:
    """The evaluations with their value at 0.5, if other thresholds decided one of them."""
    tuned = any(entry.get("thresholds", "fixed") != "fixed" for entry in seed.metrics["history"])
    found = seed.logged("validation")
    known = all(metric in line.get("at_half", {}) for line in found)
    return found if source.has_thresholds and tuned and known else []


def quality(source: Source) -> dict[str, Any]:
    """Plots of the predictions of the last split; empty without predictions."""
    if not source.predictions:
        return {}
    labels = source.labels
    true = source.predictions[0].true_marks(labels)
    return {
        "precision_recall": _precision_recall(source, true),
        "of_labels": _of_labels(source, true),
        "calibration": _calibration(source),
        "confusion": None if labels.multi_label else _confusion(source),
    }


def _precision_recall(source: Source, true: Marks) -> Markup:
    """Precision over recall of each seed: of the positive class, or of all decisions."""
    lines, dots = [], []
    counted = slice(1, 2) if source.labels.binary else slice(None)
    for number, (seed, found) in enumerate(zip(source.seeds, source.predictions, strict=True)):
        marks = found.true_marks(source.labels)
        of, scores, predicted = (m[:, counted] for m in (marks, found.probabilities, found.predicted))
        name = f"seed {seed.seed}" if len(source.seeds) > 1 else "by probability"
        if source.labels.many:
            cells, share = cells_of(found, source.labels, _stride(source)), _share_kept(found, source)
        else:
            cells, share = (of[:: _stride(source)].ravel(), scores[:: _stride(source)].ravel()), 1.0
        lines.append(Line(name, [(recall * share, p) for recall, p in precision_recall(*cells)], number))
        if of.sum() and predicted.sum():
            hits = int(of.multiply(predicted).sum() if source.labels.many else (of & predicted).sum())
            here = [(hits / int(of.sum()), hits / int(predicted.sum()))]
            dots.append(Line("decisions", here, number, marked=True, joined=False))
    what = (source.labels.names[1] if source.labels.binary else "all labels together") + _of_some(source)
    return line_chart(lines + dots, Axes(f"Precision over recall, {what}", "recall", "precision", whole=True))


def _share_kept(found: Predictions, source: Source) -> float:
    """The share of the true labels that are among the kept ones: with many labels, the largest recall of a curve."""
    hits, _ = cells_of(found, source.labels)
    return float(hits.sum() / max(1, found.true_marks(source.labels).sum()))


def _stride(source: Source) -> int:
    """Every which row the curves of all labels are drawn from: 1 for all, 2 for every second."""
    found: Any = source.predictions[0].probabilities
    cells = found.nnz if source.labels.many else found.shape[0] * found.shape[1]
    return max(1, -(-cells // MOST_CELLS))


def _of_some(source: Source) -> str:
    """A remark on curves that are not drawn from all rows."""
    rows, stride = len(source.predictions[0]), _stride(source)
    kept = f", the {source.recipe.train.top_labels} most probable of each text" if source.labels.many else ""
    return kept if stride == 1 else f"{kept}, {len(range(0, rows, stride)):,} of {rows:,} texts"


def _of_labels(source: Source, true: Marks) -> list[Markup]:
    """Precision over recall of the most frequent labels, mean probabilities of the seeds."""
    if source.labels.binary or any(found.ids != source.predictions[0].ids for found in source.predictions):
        return []
    order = np.argsort(-np.asarray(true.sum(axis=0)).ravel(), kind="stable")[:SHOWN_CURVES]
    return [
        line_chart(
            [Line("by probability", precision_recall(_column(true, i), _column(source.mean_probabilities, i)))],
            Axes(source.labels.names[i], "recall", "precision", whole=True, small=True),
        )
        for i in order
        if true[:, i].sum()
    ]


def _column(marks: Marks, label: int) -> np.ndarray:
    """The column of a label, [rows]."""
    column = marks[:, [label]]
    found: np.ndarray = (column.toarray() if sparse.issparse(column) else column).ravel()
    return found


def _calibration(source: Source) -> Markup:
    """Predicted probability against observed frequency, for each seed."""
    lines = []
    for number, (seed, found) in enumerate(zip(source.seeds, source.predictions, strict=True)):
        if source.labels.many:
            true, scores = cells_of(found, source.labels, _stride(source))
        else:
            true = found.true_marks(source.labels)[:: _stride(source)]
            scores = found.probabilities[:: _stride(source)]
        bins = reliability(scores, true, source.labels.multi_label)
        name = f"seed {seed.seed}"
        lines.append(Line(name, [(b.predicted, b.observed) for b in bins], number, marked=True))
    return line_chart(
        lines,
        Axes(
            f"Calibration{_of_some(source)}", "predicted probability", "observed frequency", whole=True, diagonal=True
        ),
    )


def _confusion(source: Source) -> dict[str, Any]:
    """The heat map of classes, all seeds added up; of very many, those with the most mistakes."""
    names, matrix = source.labels.names, np.zeros((len(source.labels.names),) * 2, dtype=np.int64)
    for found in source.predictions:
        matrix += confusion_matrix(found.true_marks(source.labels), found.predicted)
    shown = np.arange(len(names))
    if len(names) > SHOWN_CLASSES:
        wrong = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * np.diag(matrix)
        shown = np.sort(np.argsort(-wrong, kind="stable")[:SHOWN_CLASSES])
    picture = heat_map(matrix[np.ix_(shown, shown)], [names[i] for i in shown])
    return {"picture": picture, "shown": len(shown), "of": len(names)}


def confusions(source: Source) -> list[dict[str, Any]]:
    """The labels that are most often confused, of a single run as in metrics.json, of several the mean."""
    if not source.splits:
        return []
    found: dict[tuple[str, str | None], list[int]] = {}
    for seed in source.seeds:
        for entry in seed.metrics[source.splits[-1]].get("confusions", []):
            found.setdefault((entry["true"], entry["predicted"]), []).append(entry["rows"])
    count = len(source.seeds)
    rows: list[dict[str, Any]] = [{"true": t, "predicted": p, "rows": sum(n) / count} for (t, p), n in found.items()]
    return sorted(rows, key=lambda row: -row["rows"])[:20]
