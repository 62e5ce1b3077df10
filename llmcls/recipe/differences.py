"""Comparing recipes: do they train the same model?"""

from __future__ import annotations

from typing import Any

from llmcls.recipe.load import recipe_to_dict
from llmcls.recipe.schema import Recipe

# Keys that change what is written, not what is learned.
_HARMLESS = {
    "train.logging_steps",
    "train.max_skipped_steps",
    "train.report_to",
    "train.save_minutes",
    "train.save_total_limit",
    "train.stuck_minutes",
    "train.tracking_group",
    "train.tracking_tags",
    "train.tracking_texts",
    "train.train_metrics_rows",
    "train.wandb_entity",
    "train.wandb_project",
}


def differing_keys(saved: dict[str, Any], recipe: Recipe) -> list[str]:
    """Keys in which a saved recipe would train another model than this one.

    Parameters
    ----------
    saved : dict
        A recipe as plain values, maybe written by an older version: a key it lacks counts as equal.
    recipe : Recipe

    Returns
    -------
    Keys as "section.key", in the order of the schema.
    """
    now = recipe_to_dict(recipe)
    return [
        f"{section}.{key}"
        for section in ("data", "model", "train")
        for key, value in now[section].items()
        if f"{section}.{key}" not in _HARMLESS and saved.get(section, {}).get(key, value) != value
    ]


def same_but_for_seeds(saved: list[dict[str, Any]]) -> bool:
    """Whether all these recipes, as plain values, learn the same from the same data, apart from the seeds."""
    learned = [{section: recipe[section] for section in ("data", "model", "train")} for recipe in saved]
    return all(recipe == learned[0] for recipe in learned)
