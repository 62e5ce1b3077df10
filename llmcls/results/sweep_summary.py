"""The summary of a sweep: a table of all combinations, ranked by the metric of the recipe."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from llmcls.common.files import read_json, write_json, write_text
from llmcls.recipe.defaults import selection_metric
from llmcls.recipe.grid import Grid, tasks_of
from llmcls.recipe.load import load_recipe
from llmcls.recipe.metric_names import metric_direction
from llmcls.recipe.schema import Recipe
from llmcls.results.run_folder import ExperimentFolder
from llmcls.results.sweep_report import shown_value, write_sweep_report


def write_sweep_summary(grid: Grid) -> str:
    """Write ``sweep-<grid>.md``, ``sweep-<grid>.json`` and ``sweep-<grid>.html`` to the output root of the recipe.

    The table has the mean and the sample standard deviation over the seeds of each combination, the best combination
    first. Combinations are ranked by validation, and by test only if the recipe has no validation file.

    Parameters
    ----------
    grid : Grid

    Returns
    -------
    str
        The table.
    """
    common = load_recipe(grid.recipe, grid.overrides)
    metric = selection_metric(common)
    combinations: dict[str, dict[str, Any]] = {}
    for task in tasks_of(grid):
        entry = combinations.setdefault(
            repr(task.values),
            {"values": task.values, "validation": [], "test": [], "seeds": [], "missing": [], "folders": []},
        )
        recipe = load_recipe(grid.recipe, task.overrides)
        run = ExperimentFolder.of(recipe).run(0)
        file = run.metrics
        if not file.exists():
            entry["missing"].append(task.seed)
            continue
        metrics = read_json(file)
        entry["seeds"].append(task.seed)
        entry["folders"].append(str(run.path))
        for split in ("validation", "test"):
            if split in metrics:
                entry[split].append(metrics[split][metric])
    ranked = sorted(combinations.values(), key=lambda e: _rank(e, common))
    keys = list(grid.grid)
    lines = [
        f"# sweep {Path(grid.source).stem}: {metric}",
        "",
        "| " + " | ".join(k.rpartition(".")[2] for k in keys) + " | seeds | validation | test | not finished |",
        "|" + "---|" * (len(keys) + 4),
    ]
    for entry in ranked:
        cells = [shown_value(entry["values"][k]) for k in keys] + [", ".join(map(str, entry["seeds"]))]
        cells += [_mean(entry["validation"]), _mean(entry["test"]), ", ".join(f"seed {s}" for s in entry["missing"])]
        lines.append("| " + " | ".join(cells) + " |")
    text = "\n".join(lines) + "\n"
    file = Path(common.exp.output_root) / f"sweep-{Path(grid.source).stem}"
    write_text(file.with_suffix(".md"), text)
    write_json(file.with_suffix(".json"), {"metric": metric, "combinations": ranked})
    write_sweep_report(file.with_suffix(".html"), Path(grid.source).stem, common, ranked)
    return text


def _rank(entry: dict[str, Any], recipe: Recipe) -> float:
    """The sort key of a combination: lower is better; a combination without a finished seed is last."""
    values = entry["validation"] or entry["test"]
    return -metric_direction(selection_metric(recipe)) * statistics.fmean(values) if values else float("inf")


def _mean(values: list[float]) -> str:
    """Mean and sample standard deviation as text; empty without values."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{spread}"
