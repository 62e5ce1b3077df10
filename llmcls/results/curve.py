"""The learning curve of finished runs: the model and its baselines at growing numbers of rows, and what follows."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from llmcls.common.files import write_json, write_text
from llmcls.common.user_error import UserError
from llmcls.data.labels import LabelSpace
from llmcls.evaluation.learning_curve import Estimate, Forecast, advice, drawn_means, forecast
from llmcls.recipe.grid import Grid, tasks_of
from llmcls.recipe.load import load_recipe
from llmcls.recipe.metric_names import in_words
from llmcls.results.curve_picture import write_pictures
from llmcls.results.predictions import read_decisions
from llmcls.results.run_folder import ExperimentFolder, RunFolder
from llmcls.results.saved_labels import read_label_space
from llmcls.results.verdict import judged_metric

# What the curve shows, and how it is called there. "model" is the fine-tuned one; the others are baselines.
METHODS = {"model": "fine-tuned", "probe": "frozen + linear probe", "tfidf_linear": "TF-IDF + linear"}


@dataclass(frozen=True)
class LearningCurve:
    """A metric by number of training rows.

    Attributes
    ----------
    split, metric : str
    sizes : list of int
    points : dict of list of Estimate
        For each method of `METHODS`, its mean over the seeds at each size.
    seeds : dict of list of list of float
        For each method and size, the value of each seed.
    forecast : Forecast, optional
        For the fine-tuned model; None for a single size.
    sentence : str
        The advice.
    missing : list of str
        Runs that are not finished.
    """

    split: str
    metric: str
    sizes: list[int]
    points: dict[str, list[Estimate]]
    seeds: dict[str, list[list[float]]]
    forecast: Forecast | None
    sentence: str
    missing: list[str] = field(default_factory=list)


def curve_of(grid: Grid, worth: float) -> LearningCurve:
    """Read the finished runs of the grid of a learning curve.

    Parameters
    ----------
    grid : Grid
        From `llmcls.training.curve_plan.curve_grid`.
    worth : float
        See `llmcls.evaluation.learning_curve.advice`.

    Raises
    ------
    UserError
        If no size has a finished run with predictions.
    """
    runs: dict[int, list[RunFolder]] = {}
    missing = []
    for task in tasks_of(grid):
        recipe = load_recipe(grid.recipe, task.overrides)
        run = ExperimentFolder.of(recipe).run(0)
        if run.finished:
            runs.setdefault(int(recipe.data.train_rows or 0), []).append(run)
        else:
            missing.append(str(recipe.exp.run_name))
    split = next((s for s in ("test", "validation") if _all_predicted(runs, s)), None)
    if split is None:
        raise UserError(f"{grid.source}: no run of this learning curve is finished; run it without --draw-only first")
    metric, sizes = judged_metric(load_recipe(grid.recipe, tasks_of(grid)[0].overrides)), sorted(runs)
    labels = read_label_space(runs[sizes[0]][0].labels)
    true, _ = read_decisions(runs[sizes[0]][0].predictions(split), labels)
    points: dict[str, list[Estimate]] = {}
    seeds: dict[str, list[list[float]]] = {}
    found: Forecast | None = None
    for method in METHODS:
        decisions = [[_decisions(run, method, split, labels) for run in runs[size]] for size in sizes]
        known = [[d for d in of_size if d is not None] for of_size in decisions]
        if not all(known):
            continue
        values, drawn = drawn_means(true, known, metric)
        points[method] = [Estimate.of(v, d) for v, d in zip(values, drawn.T, strict=True)]
        seeds[method] = [[float(drawn_means(true, [[d]], metric, 1)[0][0]) for d in of_size] for of_size in known]
        if method == "model":
            found = forecast(sizes, seeds[method], drawn_means(true, known, metric, draw_runs=False)[1])
    sentence = _sentence(points, found, in_words(metric), sizes[-1], worth)
    return LearningCurve(split, metric, sizes, points, seeds, found, sentence, missing)


def write_curve(curve: LearningCurve, folder: Path, name: str) -> str:
    """Write ``<name>.json``, ``.md``, ``.png`` and ``.svg``.

    Returns
    -------
    str
        The content of the .md file.
    """
    write_json(folder / f"{name}.json", asdict(curve))
    lines_of = {METHODS[m]: points for m, points in curve.points.items()}
    write_pictures(folder / name, f"{in_words(curve.metric)} on {curve.split}", curve.sizes, lines_of, curve.forecast)
    lines = [f"# {in_words(curve.metric)} on {curve.split} by labelled rows", "", curve.sentence, ""]
    lines += [f"![learning curve]({name}.svg)", "", *curve_table(curve)]
    if curve.missing:
        lines += ["", f"Not finished: {', '.join(curve.missing)}."]
    text = "\n".join(lines) + "\n"
    write_text(folder / f"{name}.md", text)
    return text


def curve_table(curve: LearningCurve) -> list[str]:
    """The points of a curve as the lines of a Markdown table."""
    methods = list(curve.points)
    lines = ["| rows | seeds | " + " | ".join(METHODS[m] for m in methods) + " |", "|---|---|" + "---|" * len(methods)]
    for i, size in enumerate(curve.sizes):
        cells = [f"{p.value:.4f} ({p.low:.4f} to {p.high:.4f})" for p in (curve.points[m][i] for m in methods)]
        lines.append(f"| {size} | {len(curve.seeds['model'][i])} | " + " | ".join(cells) + " |")
    return lines


def _all_predicted(runs: dict[int, list[RunFolder]], split: str) -> bool:
    found = [run.predictions(split).is_file() for of_size in runs.values() for run in of_size]
    return bool(found) and all(found)


def _decisions(run: RunFolder, method: str, split: str, labels: LabelSpace) -> np.ndarray | None:
    """The decisions of a run or of a baseline beside it, bool [rows, labels]; None if they are not stored."""
    if method == "model":
        return read_decisions(run.predictions(split), labels)[1]
    return run.experiment.baselines.decisions_on(split).get(method)


def _sentence(
    points: dict[str, list[Estimate]], found: Forecast | None, metric: str, rows: int, worth: float
) -> str:  # fmt: skip
    """The advice, and how the methods stand at the largest size."""
    standing = ", ".join(f"{METHODS[m]} {p[-1].value:.3f}" for m, p in points.items())
    text = f"With {rows:,} rows: {standing}."
    if found is None:
        return f"{text} One size says nothing about more rows; give two sizes or more."
    text = f"{advice(found, metric, rows, worth)} {text}"
    if found.check is not None:
        text += f" The smaller sizes predict {found.check:.3f} for fine-tuning there."
    return text
