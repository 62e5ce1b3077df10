from __future__ import annotations

import pytest

from llmcls.evaluation.not_finite import advice, named
from llmcls.recipe.load import load_recipe


@pytest.mark.parametrize(
    "dtype, precision, clipping, expected",
    [
        ("float32", "no", 1.0, "lower train.learning_rate (0.002)"),
        ("float32", None, 0.0, "lower train.learning_rate (0.002), or set train.max_grad_norm=1"),
        ("bfloat16", "no", 1.0, "lower train.learning_rate (0.002), or set model.torch_dtype=float32"),
        ("float16", None, 1.0, "lower train.learning_rate (0.002), or set model.torch_dtype=bfloat16 or float32"),
        ("float32", "bf16", 1.0, "lower train.learning_rate (0.002), or set mixed_precision of the profile to no"),
    ],
)
def test_the_advice_fits_the_recipe(write_recipe, dtype, precision, clipping, expected) -> None:
    recipe = load_recipe(write_recipe(model__torch_dtype=dtype, train__max_grad_norm=clipping))
    assert advice(recipe, precision) == expected


def test_long_names_are_cut() -> None:
    assert named(["x" * 1000]) == f"'{'x' * 24}...'"
