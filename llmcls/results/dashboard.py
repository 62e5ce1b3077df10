"""What a finished run shows in a tracker besides its series: tables, figures and texts, the same in every tracker."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmcls.data.labels import LabelSpace
from llmcls.evaluation.diagrams import reliability
from llmcls.recipe.schema import Recipe
from llmcls.results import markdown, report_plots, report_tables
from llmcls.results.cells import shown_baselines
from llmcls.results.dashboard_figures import figures_of
from llmcls.results.predictions import cells_of
from llmcls.results.report_source import Source, read_seed
from llmcls.results.report_texts import texts_to_look_at
from llmcls.results.run_folder import ExperimentFolder, RunFolder
from llmcls.results.verdict import verdict_on

Cell = str | float | int | None


@dataclass(frozen=True)
class Table:
    """Columns by name, and rows of as many cells."""

    columns: list[str]
    rows: list[list[Cell]]

    def markdown(self) -> str:
        """The table as Markdown, in which texts of the data are no markup."""
        return markdown.table(self.columns, [[_shown(cell) for cell in row] for row in self.rows], len(self.columns))


@dataclass(frozen=True)
class Dashboard:
    """What a tracker shows of a finished run.

    Attributes
    ----------
    tables : dict of Table
        By name, such as "tables/per_class".
    figures : dict of uint8 [height, width, 3]
        By name, such as "figures/calibration".
    precision_recall : dict of (bool [cells], float [cells])
        Truth and probability, of all labels together, by name.
    texts : dict of str
        The verdict, by name.
    report : Path, optional
        The page of the run; None if texts of the data must not leave the machine.
    """

    tables: dict[str, Table] = field(default_factory=dict)
    figures: dict[str, np.ndarray] = field(default_factory=dict)
    precision_recall: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    report: Path | None = None


def dashboard_of(run: RunFolder, recipe: Recipe, labels: LabelSpace, metrics: dict[str, Any]) -> Dashboard:
    """Tables, figures and texts of a run whose files are written.

    Parameters
    ----------
    run : RunFolder
    recipe : Recipe
        Of this run. Without ``train.tracking_texts``, nothing that holds texts of the data is included.
    labels : LabelSpace
    metrics : dict
        The content of metrics.json.
    """
    source = Source(recipe, labels, [read_seed(run, metrics)])
    verdict = verdict_on([run])
    tables = {"tables/per_class": _per_class(source)}
    if source.splits:
        tables["tables/results"] = _results(source)
    rules = report_tables.rules(source)
    if rules:
        names = rules["names"]
        rows = [[row["rule"], *(row["figures"].get(name) for name in names)] for row in rules["rows"]]
        tables["tables/thresholds"] = Table(["rule", *names], rows)
    pairs = report_plots.confusions(source)
    if pairs:
        rows = [[pair["true"], pair["predicted"], pair["rows"]] for pair in pairs]
        tables["tables/confusions"] = Table(["true", "predicted", "texts"], rows)
    precision_recall = {}
    if source.predictions:
        found, true = source.predictions[0], source.predictions[0].true_marks(labels)
        cells = cells_of(found, labels)
        marks, scores = cells if labels.multi_label else (true, found.probabilities)
        bins = reliability(scores, marks, labels.multi_label)
        columns = ["predicted probability", "observed frequency", "count"]
        tables["tables/calibration"] = Table(columns, [[b.predicted, b.observed, b.count] for b in bins])
        if labels.binary:
            cells = true[:, 1], found.probabilities[:, 1]
        precision_recall[f"{source.splits[-1]}/precision_recall"] = cells
    if recipe.train.tracking_texts:
        tables |= _texts(source)
    return Dashboard(
        tables=tables,
        figures=figures_of(source),
        precision_recall=precision_recall,
        texts={"verdict": verdict.sentence()} if verdict else {},
        report=run.report if recipe.train.tracking_texts and run.report.is_file() else None,
    )


def reference_values(experiment: ExperimentFolder, recipe: Recipe) -> dict[str, Any]:
    """The metrics of the baselines, by baseline and split, each a single number."""
    found = shown_baselines(experiment, recipe)
    return {
        f"baselines/{name}/{split}": {key: value for key, value in values.items() if not isinstance(value, dict | list)}
        for name, splits in found.items()
        for split, values in splits.items()
        if isinstance(values, dict)
    }


def _per_class(source: Source) -> Table:
    """Every label, the most frequent one first."""
    columns = ["train", "support", "f1", "precision", "recall", "average_precision", "threshold"]
    rows = [[row["name"], *(row[column] for column in columns)] for row in report_tables.labels(source)]
    return Table(["label", *columns], rows)


def _results(source: Source) -> Table:
    """Every metric on the last split, beside the baselines."""
    split = source.splits[-1]
    known = {name: found[split] for name, found in _baselines(source).items() if split in found}
    rows: list[list[Cell]] = []
    for row in report_tables.overview(source):
        others = [found.get(row["metric"]) for found in known.values()]
        rows.append([row["metric"], row["by_split"][split], *others])
    return Table([f"metric on {split}", "fine-tuned", *known], rows)


def _baselines(source: Source) -> dict[str, Any]:
    return shown_baselines(source.runs[0].experiment, source.recipe)


def _texts(source: Source) -> dict[str, Table]:
    """The most confident mistakes, and labels of the data that are probably wrong."""
    found = texts_to_look_at(source)
    if not found:
        return {}
    mistakes: list[list[Cell]] = [
        [m["id"], m["text"], ", ".join(m["true"]), m["label"], "yes" if m["said"] else "no", m["probability"]]
        for m in found["mistakes"]
    ]
    errors: list[list[Cell]] = [
        [e["id"], e["text"], e["label"], "yes" if e["given"] else "no", e["belief"]] for e in found["label_errors"]
    ]
    return {
        "tables/mistakes": Table(["id", "text", "true", "wrong about", "said", "probability"], mistakes),
        "tables/probable_label_errors": Table(["id", "text", "label", "given", "belief"], errors),
    }


def _shown(cell: Cell) -> str:
    """A cell as text."""
    if cell is None:
        return "–"
    return f"{cell:.4f}" if isinstance(cell, float) else str(cell)
