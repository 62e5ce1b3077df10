"""The page of a sweep: every combination, the best one first, and whether its lead is more than noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmcls.common.files import write_text
from llmcls.recipe.defaults import selection_metric
from llmcls.recipe.grid import Grid
from llmcls.recipe.load import load_recipe
from llmcls.recipe.metric_names import in_words, metric_direction
from llmcls.results.comparison import compare
from llmcls.results.report_page import render
from llmcls.results.report_source import mean_of
from llmcls.results.run_folder import RunFolder
from llmcls.results.sweep_summary import ranked_combinations, shown_value, sweep_file
from llmcls.results.verdict import RESAMPLES, judged_metric


def write_sweep_report(grid: Grid) -> Path:
    """Write a sweep as ``sweep-<grid>.html``, a page that needs no other file, to the output root of the recipe.

    Parameters
    ----------
    grid : Grid

    Returns
    -------
    Path
        The page.
    """
    recipe, ranked = load_recipe(grid.recipe, grid.overrides), ranked_combinations(grid)
    path, name = sweep_file(grid).with_suffix(".html"), Path(grid.source).stem
    metric = selection_metric(recipe)
    keys = list(ranked[0]["values"]) if ranked else []
    ran = [entry for entry in ranked if entry["seeds"]]
    split = "validation" if any(entry["validation"] for entry in ran) else "test"
    values = [value for entry in ran for value in entry[split] if value is not None]
    top = 1.0 if metric_direction(metric) > 0 and max(values, default=0) <= 1 else max([*values, 1e-9])
    rows = [
        {
            "values": [shown_value(entry["values"][key]) for key in keys], "seeds": entry["seeds"],
            "missing": entry["missing"], "mean": mean_of(entry[split]), "test": mean_of(entry["test"]),
            "bar": (mean_of(entry[split]) or 0.0) / top, "dots": [(v or 0.0) / top for v in entry[split]],
        }
        for entry in ranked
    ]  # fmt: skip
    unfinished = sum(len(entry["missing"]) for entry in ranked)
    page = render(
        "sweep.html",
        title=f"Sweep {name} on {recipe.data.dataset_name}",
        kicker="Comparison of recipes",
        facts=[f"{len(ranked)} combinations", f"{sum(len(e['seeds']) for e in ranked)} finished runs"]
        + ([f"{unfinished} not finished"] if unfinished else []),
        sections=[("result", "Result"), ("glossary", "Glossary")],
        folder=path.name.removesuffix(".html"),
        verdict=_verdict(ran, metric, split),
        steps=_next_steps(ran, unfinished),
        keys=[key.rpartition(".")[2] for key in keys],
        rows=rows,
        words=in_words(metric),
        metric=metric,
        split=split,
        with_test=split == "validation" and any(entry["test"] for entry in ran),
    )
    write_text(path, page)
    return path


def _verdict(ran: list[dict[str, Any]], metric: str, split: str) -> str:
    """Which combination leads, and whether its lead over the second is more than noise."""
    if not ran:
        return "No run is finished yet."
    best = ", ".join(f"{key.rpartition('.')[2]} {shown_value(value)}" for key, value in ran[0]["values"].items())
    value = mean_of(ran[0][split])
    lead = f"{best} leads with {in_words(metric)} {value:.3f} on {split}" if value is not None else f"{best} leads"
    if len(ran) < 2:
        return f"{lead}."
    sides = [[RunFolder(Path(folder)) for folder in entry["folders"]] for entry in ran[:2]]
    if not all(run.predictions(split).is_file() and run.labels.is_file() for side in sides for run in side):
        return f"{lead}."
    found = compare(sides[1], sides[0], split, RESAMPLES, same=False)
    judged = judged_metric(load_recipe(sides[0][0].recipe))
    v = next(v for v in found.of_models if v.metric == judged)
    more = "which is more than noise" if v.word == "B is better" else "which is not more than noise"
    interval = f"95 % interval {v.low:+.3f} to {v.high:+.3f}"
    return f"{lead}; its lead over the second is {v.second - v.first:+.3f} in {in_words(judged)} ({interval}), {more}."


def _next_steps(ran: list[dict[str, Any]], unfinished: int) -> list[str]:
    """What to do after a sweep."""
    steps = []
    if unfinished:
        steps.append("Submit the sweep again: runs that are not finished resume, the others are kept.")
    if ran and min(len(entry["seeds"]) for entry in ran) < 3:
        steps.append("Give the best combinations three seeds before you choose: a single one may have been lucky.")
    if len(ran) > 1:
        steps.append("The best of many is partly luck, so judge it by its test figures, and only once.")
    return steps
