from __future__ import annotations

from dataclasses import replace

import pytest
from transformers import LlamaConfig

from llmcls.model.memory import Shape, estimate, guessed_shape, memory_lines, shape_of
from llmcls.recipe.defaults import EIGHT_BIT_FROM
from llmcls.recipe.load import load_recipe


def test_memory_follows_the_formula(write_recipe) -> None:
    recipe = load_recipe(write_recipe(), ["torch_dtype=bfloat16", "batch_size=1", "max_length=1024", "lora_r=8"])
    shape, gib = Shape(layers=10, hidden=1024, linear=1e9, other=1e8, adapted=1e5), 2.0**30
    found = estimate(shape, recipe, "none", 4)
    trained = 8 * 1e5
    assert found.weights == pytest.approx((2 * 1.1e9 + 4 * trained) / gib)
    assert found.optimizer == pytest.approx(12 * trained / gib)
    assert found.activations == pytest.approx(10 * 34 * 1024 * 1024 / gib)
    assert found.total == pytest.approx(found.weights + found.optimizer + found.activations + 1)
    assert estimate(shape, recipe, "optimizer_state", 4).optimizer == pytest.approx(found.optimizer / 4)
    assert estimate(shape, recipe, "all", 4).weights == pytest.approx(found.weights / 4 + 2 * 2 * 1e8 / gib)
    recipe.model.use_4bit = True
    four_bit = estimate(shape, recipe, "none", 1)
    assert four_bit.weights == pytest.approx((1e9 * 4.127 / 8 + 2e8 + 4 * trained) / gib)
    assert four_bit.optimizer == pytest.approx(12 * trained / gib)
    many = replace(shape, adapted=EIGHT_BIT_FROM / 8)
    assert estimate(many, recipe, "none", 1).optimizer == pytest.approx(6 * EIGHT_BIT_FROM / gib)
    assert four_bit.activations < found.activations / 5


def test_shapes_are_counted_and_guessed(write_recipe) -> None:
    one_billion = LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        head_dim=64,
        num_key_value_heads=8,
        vocab_size=128256,
    )
    recipe = load_recipe(write_recipe())
    shape = shape_of(one_billion, recipe)
    assert shape.linear == 973_078_528
    assert shape.adapted == 16 * (2048 + 2048 + 2048 + 512)
    guess = guessed_shape(1.0)
    assert 0.7 < guess.linear / shape.linear < 1.4
    assert 0.8 < guess.hidden / shape.hidden < 1.25
    lines = memory_lines(recipe, one_billion, "all", 4)
    assert "4 GPU(s), sharded: all" in lines[0]
    recipe.model.model_name = "nobody/unknown"
    assert memory_lines(recipe, None, "none", 1)[0].startswith("no estimate")
