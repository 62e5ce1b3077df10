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


def ranked_combinations(grid: Grid) -> list[dict[str, Any]]:
    """The combinations of a sweep, the best one first.

    They are ranked by the metric of the recipe on validation, and on test only if the recipe has no validation file.

    Returns
    -------
    list of dict
        "values" by recipe key, "seeds" that are finished and "missing" ones, the "folders" of the finished runs, and
        the metric of each on "validation" and "test".
    """
    common = load_recipe(grid.recipe, grid.overrides)
    metric = selection_metric(common)
    combinations: dict[str, dict[str, Any]] = {}
    for task in tasks_of(grid):
        entry = combinations.setdefault(
            repr(task.values),
            {"values": task.values, "validation": [], "test": [], "seeds": [], "missing": [], "folders": []},
        )
        run = ExperimentFolder.of(load_recipe(grid.recipe, task.overrides)).run(0)
        if not run.metrics.exists():
            entry["missing"].append(task.seed)
            continue
        metrics = read_json(run.metrics)
        entry["seeds"].append(task.seed)
        entry["folders"].append(str(run.path))
        for split in ("validation", "test"):
            if split in metrics:
                entry[split].append(metrics[split][metric])
    return sorted(combinations.values(), key=lambda e: _rank(e, common))


def sweep_file(grid: Grid) -> Path:
    """Where the results of a sweep are written, without a suffix: in the output root of its recipe."""
    return Path(load_recipe(grid.recipe, grid.overrides).exp.output_root) / f"sweep-{Path(grid.source).stem}"


def write_sweep_summary(grid: Grid) -> str:
    """Write ``sweep-<grid>.md`` and ``sweep-<grid>.json`` to the output root of the recipe.

    The table has the mean and the sample standard deviation over the seeds of each combination, the best combination
    first.

    Parameters
    ----------
    grid : Grid

    Returns
    -------
    str
        The table.
    """
    metric, ranked = selection_metric(load_recipe(grid.recipe, grid.overrides)), ranked_combinations(grid)
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
    file = sweep_file(grid)
    write_text(file.with_suffix(".md"), text)
    write_json(file.with_suffix(".json"), {"metric": metric, "combinations": ranked})
    return text


def shown_value(value: Any) -> str:
    """A value of the grid as text; keys that change together with their names."""
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{key.rpartition('.')[2]} {v}" for key, v in value.items())


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
