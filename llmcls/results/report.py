"""Render report.html: one self-contained page for a run, or for all seeds of an experiment.

The page has the verdict, the result beside the baselines, curves, labels, calibration, confusions, texts to look at,
data, devices, cost and the recipe. Every text that comes from data is escaped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmcls.common.files import read_json, write_text
from llmcls.recipe.load import load_recipe, recipe_to_yaml
from llmcls.recipe.schema import Recipe
from llmcls.recipe.shareable import without_paths
from llmcls.results import report_plots, report_tables
from llmcls.results.cells import BASELINE_NAMES
from llmcls.results.finished_runs import labels_of
from llmcls.results.next_steps import next_steps
from llmcls.results.report_page import render
from llmcls.results.report_source import Source, read_seed
from llmcls.results.report_texts import texts_to_look_at
from llmcls.results.run_folder import RunFolder
from llmcls.results.saved_labels import read_label_space
from llmcls.results.seal import reseal
from llmcls.results.verdict import verdict_on


def write_report(run: RunFolder, recipe: Recipe, metrics: dict[str, Any]) -> None:
    """Write the report of a run, a page that needs no other file.

    Parameters
    ----------
    run : RunFolder
        Everything but metrics.json is written.
    recipe : Recipe
    metrics : dict
        The content of metrics.json.
    """
    labels = read_label_space(run.labels)
    write_text(run.report, _page(Source(recipe, labels, [read_seed(run, metrics)])))


def render_report(run: RunFolder) -> Path:
    """Write the report of a finished run again, from the files in its folder.

    Parameters
    ----------
    run : RunFolder

    Returns
    -------
    Path
        The report.

    Raises
    ------
    UserError
        If there is no run in the folder, or it is not finished.
    """
    labels_of(run)
    write_report(run, load_recipe(run.recipe), read_json(run.metrics))
    reseal(run, [run.report])
    return run.report


def render_experiment_report(runs: list[RunFolder]) -> Path:
    """Write one report for all seeds of an experiment; returns its path.

    Parameters
    ----------
    runs : list of RunFolder
        At least one, all finished.

    Raises
    ------
    UserError
        If one of them is not finished.
    """
    labels = [labels_of(run) for run in runs]
    source = Source(load_recipe(runs[0].recipe), labels[0], [read_seed(run) for run in runs])
    write_text(runs[0].experiment.report, _page(source))
    return runs[0].experiment.report


def _page(source: Source) -> str:
    """The page of one run or of several seeds."""
    evaluated = bool(source.splits)
    verdict = verdict_on(source.runs)
    quality, texts = report_plots.quality(source), texts_to_look_at(source)
    confusions = report_plots.confusions(source)
    named = {
        "result": "Result", "training": "Training", "labels": "Labels", "quality": quality and "Probabilities",
        "confusions": (confusions or (quality and quality["confusion"])) and "Confusions", "texts": texts and "Texts",
        "data": "Data and cost", "recipe": "Recipe", "glossary": "Glossary",
    }  # fmt: skip
    many = len(source.seeds) > 1
    folder = source.runs[0].experiment.path if many else source.runs[0].path
    return render(
        "run.html",
        title=report_tables.title(source),
        kicker="Fine-tuned text classifier",
        facts=report_tables.facts(source),
        sections=[(name, text) for name, text in named.items() if text],
        folder="/".join(folder.parts[-4 if not many else -3 :]),
        result=report_tables.result(source) if evaluated else None,
        verdict=verdict.sentence() if verdict else None,
        steps=next_steps(verdict, source.recipe, [seed.metrics for seed in source.seeds]),
        figures=report_tables.figures(source) if evaluated and source.intervals else [],
        rules=report_tables.rules(source),
        overview=report_tables.overview(source) if evaluated else [],
        splits=source.splits,
        tuned=source.tuned,
        with_thresholds=source.has_thresholds,
        curves=report_plots.curves(source),
        labels=report_tables.labels(source),
        bands=report_tables.bands(source),
        all_labels=len(source.labels.names),
        quality=quality,
        confusions=confusions,
        texts=texts,
        data=report_tables.data(source),
        seeds=report_tables.seeds(source),
        machine=report_tables.machine(source),
        recipe=recipe_to_yaml(without_paths(source.recipe)),
        baseline_names=BASELINE_NAMES,
        search_from=report_tables.SEARCH_FROM,
        shown_labels=report_tables.SHOWN_LABELS,
    )
