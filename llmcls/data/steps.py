"""How many rows an optimizer step has, and how many steps an epoch."""

from __future__ import annotations

from llmcls.recipe.schema import Recipe


def global_batch_size(recipe: Recipe, ranks: int) -> int:
    """Rows of an optimizer step of a run that starts with ``ranks`` processes.

    A run keeps this number when it resumes with another number of processes.
    """
    return recipe.train.batch_size * recipe.train.gradient_accumulation_steps * ranks


def steps_per_epoch(rows: int, global_batch_size: int) -> int:
    """Optimizer steps of an epoch of ``rows`` rows.

    Examples
    --------
    >>> steps_per_epoch(10, 4)
    3
    """
    return -(-rows // global_batch_size)
