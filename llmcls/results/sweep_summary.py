"""The summary of a sweep: a table of all combinations, the best one first."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from llmcls.common.files import read_json, write_json, write_text
from llmcls.recipe.grid import Grid, tasks_of
from llmcls.recipe.load import load_recipe
from llmcls.recipe.metric_names import metric_direction
from llmcls.recipe.schema import Recipe
from llmcls.results.run_folder import ExperimentFolder


def write_sweep_summary(grid: Grid) -> str:
    """Write ``sweep-<grid>.md`` and ``.json`` to the recipe's output root, best combination first; returns the table.

    A combination's figures are the mean and sample standard deviation over its seeds. It is ranked on validation,
    never on test, when there is a validation set.
    """
    base = load_recipe(grid.recipe, grid.overrides)
    metric = base.train.metric_for_best_model
    combinations: dict[str, dict[str, Any]] = {}
    for task in tasks_of(grid):
        entry = combinations.setdefault(
            repr(task.values), {"values": task.values, "validation": [], "test": [], "seeds": [], "missing": []}
        )
        recipe = load_recipe(grid.recipe, task.overrides)
        found = ExperimentFolder.of(recipe).run(0).metrics
        if not found.exists():
            entry["missing"].append(task.seed)
            continue
        metrics = read_json(found)
        entry["seeds"].append(task.seed)
        for split in ("validation", "test"):
            if split in metrics:
                entry[split].append(metrics[split][metric])
    ranked = sorted(combinations.values(), key=lambda e: _rank(e, base))
    keys = list(grid.grid)
    lines = [
        f"# sweep {Path(grid.source).stem}: {metric}",
        "",
        "| " + " | ".join(k.rpartition(".")[2] for k in keys) + " | seeds | validation | test | not finished |",
        "|" + "---|" * (len(keys) + 4),
    ]
    for entry in ranked:
        cells = [str(entry["values"][k]) for k in keys] + [", ".join(map(str, entry["seeds"]))]
        cells += [_mean(entry["validation"]), _mean(entry["test"]), ", ".join(f"seed {s}" for s in entry["missing"])]
        lines.append("| " + " | ".join(cells) + " |")
    text = "\n".join(lines) + "\n"
    root = Path(base.exp.output_root) / f"sweep-{Path(grid.source).stem}"
    write_text(root.with_suffix(".md"), text)
    write_json(root.with_suffix(".json"), {"metric": metric, "combinations": ranked})
    return text


def _rank(entry: dict[str, Any], recipe: Recipe) -> float:
    values = entry["validation"] or entry["test"]
    return -metric_direction(recipe.train.metric_for_best_model) * statistics.fmean(values) if values else float("inf")


def _mean(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{spread}"
