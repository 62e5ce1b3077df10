"""What all tables of results show: the names of the baselines, their stored metrics, and numbers as text."""

from __future__ import annotations

import math
from typing import Any

from llmcls.recipe.schema import Recipe
from llmcls.results.run_folder import ExperimentFolder

# Baselines, as in baselines.json, to their names in tables.
BASELINE_NAMES = {
    "majority": "majority", "tfidf_linear": "TF-IDF + linear", "tfidf_centroid": "TF-IDF centroid",
    "probe": "frozen + linear probe",
}  # fmt: skip


def shown_baselines(experiment: ExperimentFolder, recipe: Recipe) -> dict[str, Any]:
    """The metrics of the stored baselines, by baseline and split; none if the recipe wants none."""
    return {} if recipe.exp.baselines is False else experiment.baselines.read()


def format_number(value: float | int | None) -> str:
    """A number for a table: four decimals for a float, a dash for a missing or undefined value.

    Examples
    --------
    >>> format_number(0.5), format_number(12), format_number(None)
    ('0.5000', '12', '–')
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
