"""The figures of a tracker, as pixels: precision over recall, calibration, classes taken for another, baselines."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmcls.evaluation.diagrams import confusion_matrix, precision_recall, reliability
from llmcls.recipe.defaults import selection_metric
from llmcls.recipe.metric_names import in_words
from llmcls.results.cells import BASELINE_NAMES, shown_baselines
from llmcls.results.predictions import cells_of
from llmcls.results.report_source import Source

# Labels with a curve of their own, and classes of a heat map.
SHOWN_CURVES = 5
SHOWN_CLASSES = 40
# Cells from which a curve is drawn at most.
MOST_CELLS = 2_000_000


def figures_of(source: Source) -> dict[str, np.ndarray]:
    """The figures of a single run, uint8 [height, width, 3], by name.

    Parameters
    ----------
    source : Source
        One run. Without predictions there is only the figure of the evaluations.
    """
    found = {"figures/against_baselines": _against_baselines(source)}
    if source.predictions:
        found |= {"figures/precision_recall": _precision_recall(source), "figures/calibration": _calibration(source)}
        if not source.labels.multi_label:
            found["figures/confusion"] = _confusion(source)
    return {name: pixels for name, pixels in found.items() if pixels is not None}


def _against_baselines(source: Source) -> np.ndarray | None:
    """The metric that selects the best model over optimizer steps, with the baselines as lines."""
    name = selection_metric(source.recipe)
    points = [(line["step"], line[name]) for line in source.seeds[0].logged("validation") if line.get(name) is not None]
    if not points:
        return None
    figure, axes = _axes(f"validation {in_words(name)}", "optimizer step", in_words(name))
    axes.plot(*zip(*points, strict=True), marker="o", label="fine-tuned")
    known = shown_baselines(source.runs[0].experiment, source.recipe)
    for number, (key, splits) in enumerate(known.items(), start=1):
        value = splits.get("validation", {}).get(name)
        if value is not None:
            axes.axhline(value, linestyle="--", color=f"C{number}", label=BASELINE_NAMES[key])
    axes.legend()
    return _pixels(figure)


def _precision_recall(source: Source) -> np.ndarray:
    """Precision over recall: of all labels together, and of the most frequent ones."""
    found, labels = source.predictions[0], source.labels
    figure, axes = _axes(f"precision over recall, {source.splits[-1]}", "recall", "precision")
    if labels.many:
        lines = {"all labels": precision_recall(*cells_of(found, labels, -(-found.probabilities.nnz // MOST_CELLS)))}
        return _drawn(figure, axes, lines)
    true = found.true_marks(labels)
    stride = max(1, -(-true.size // MOST_CELLS))
    if labels.binary:
        lines = {labels.names[1]: precision_recall(true[:, 1], found.probabilities[:, 1])}
    else:
        lines = {"all labels": precision_recall(true[::stride].ravel(), found.probabilities[::stride].ravel())}
        for i in np.argsort(-true.sum(axis=0), kind="stable")[:SHOWN_CURVES]:
            lines[labels.names[i]] = precision_recall(true[:, i], found.probabilities[:, i])
    return _drawn(figure, axes, lines)


def _drawn(figure: Any, axes: Any, lines: dict[str, list[tuple[float, float]]]) -> np.ndarray:
    """Curves of precision over recall, as pixels."""
    for name, points in lines.items():
        if points:
            axes.plot(*zip(*points, strict=True), label=name, linewidth=2.5 if name == "all labels" else 1)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    if axes.lines:
        axes.legend()
    return _pixels(figure)


def _calibration(source: Source) -> np.ndarray:
    """Predicted probability against observed frequency."""
    found = source.predictions[0]
    true, scores = cells_of(found, source.labels)
    if not source.labels.multi_label:
        true, scores = found.true_marks(source.labels), found.probabilities
    bins = reliability(scores, true, source.labels.multi_label)
    figure, axes = _axes(f"calibration, {source.splits[-1]}", "predicted probability", "observed frequency")
    axes.plot([0, 1], [0, 1], "--", color="grey")
    axes.plot([b.predicted for b in bins], [b.observed for b in bins], marker="o")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    return _pixels(figure)


def _confusion(source: Source) -> np.ndarray:
    """Which class was predicted for which; of very many classes, those with the most mistakes."""
    found, names = source.predictions[0], source.labels.names
    matrix = confusion_matrix(found.true_marks(source.labels), found.predicted)
    shown = np.arange(len(names))
    if len(names) > SHOWN_CLASSES:
        wrong = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * np.diag(matrix)
        shown = np.sort(np.argsort(-wrong, kind="stable")[:SHOWN_CLASSES])
    part = matrix[np.ix_(shown, shown)]
    title = f"confusion, {source.splits[-1]}" + (
        f" ({len(shown)} of {len(names)} classes)" if len(shown) < len(names) else ""
    )
    # So large that the names of neighbours do not touch.
    side = max(6.0, 3 + 0.22 * len(shown))
    figure, axes = _axes(title, "predicted", "true", (side, side))
    axes.grid(visible=False)
    axes.imshow(part / np.maximum(1, part.sum(axis=1, keepdims=True)), cmap="Blues", vmin=0, vmax=1)
    shortened = [name if len(name) <= 18 else f"{name[:17]}…" for name in (names[i] for i in shown)]
    axes.set_xticks(range(len(shown)), shortened, rotation=90, fontsize=7)
    axes.set_yticks(range(len(shown)), shortened, fontsize=7)
    if len(shown) <= 20:
        for (row, column), count in np.ndenumerate(part):
            share = count / max(1, part[row].sum())
            axes.text(column, row, str(count), ha="center", va="center", color="white" if share > 0.5 else "black")
    return _pixels(figure)


def _axes(title: str, x: str, y: str, inches: tuple[float, float] = (7, 5)) -> tuple[Any, Any]:
    """A figure of a width and height with one pair of axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # pyplot would choose a GUI backend and keep every figure in memory.
    figure = Figure(figsize=inches, layout="constrained", dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def _pixels(figure: Any) -> np.ndarray:
    """A figure as uint8 [height, width, 3]."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
