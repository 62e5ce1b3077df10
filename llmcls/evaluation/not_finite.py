"""Numbers that are none: which rows they come from, and what to do about them."""

from __future__ import annotations

from collections.abc import Sequence

from llmcls.recipe.schema import Recipe

_SHOWN = 5
_LONGEST_ID = 24


def named(ids: Sequence[str]) -> str:
    """The first of some row ids, for a sentence.

    Examples
    --------
    >>> named(["a", "b"])
    "'a', 'b'"
    >>> named([str(i) for i in range(9)])
    "'0', '1', '2', '3', '4' and 4 more"
    """
    shown = ", ".join(repr(i if len(i) <= _LONGEST_ID else f"{i[:_LONGEST_ID]}...") for i in ids[:_SHOWN])
    return f"{shown} and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else shown


def advice(recipe: Recipe, precision: str | None) -> str:
    """What can make a recipe compute numbers again.

    Parameters
    ----------
    recipe : Recipe
    precision : str, optional
        What the profile computes in, where that is not ``model.torch_dtype``: "bf16", "fp16" or "no".
    """
    mixed = {"bf16": "bfloat16", "fp16": "float16"}.get(precision or "no")
    computed = mixed or recipe.model.torch_dtype
    options = [f"lower train.learning_rate ({recipe.train.learning_rate})"]
    if recipe.train.max_grad_norm == 0:
        options.append("set train.max_grad_norm=1")
    if computed != "float32":
        better = "bfloat16 or float32" if computed == "float16" else "float32"
        options.append("set mixed_precision of the profile to no" if mixed else f"set model.torch_dtype={better}")
    return ", or ".join(options)
