from __future__ import annotations

import pytest
from transformers import LlamaConfig

from llmcls.diagnosis.expectation import expected_step
from llmcls.recipe.load import load_recipe

# Seven linear layers: 64 x 64 four times, 64 x 128 three times.
CONFIG = LlamaConfig(
    hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
    vocab_size=100, num_labels=2, pad_token_id=0,
)  # fmt: skip
WEIGHTS = 4 * 64 * 64 + 3 * 64 * 128


def test_the_operations_of_a_step_are_those_of_its_matrix_products(write_recipe) -> None:
    recipe = load_recipe(write_recipe())
    found = expected_step(recipe, CONFIG, [10, 30])
    attention = 3 * 2 * 64 * (10**2 + 30**2)
    # Two of three layers, because the last one is computed at the last tokens only.
    assert found.flops == pytest.approx(2 * (2 * 2 * WEIGHTS * 40 + attention))
    full = load_recipe(write_recipe(model__lora_r=0, model__pooling="mean"))
    assert expected_step(full, CONFIG, [10, 30]).flops == pytest.approx(3 * (2 * 3 * WEIGHTS * 40 + attention))


def test_more_tokens_need_more_memory_and_four_bits_less(write_recipe) -> None:
    recipe = write_recipe()
    short, long = (expected_step(load_recipe(recipe), CONFIG, [100] * texts).peak_gib for texts in (1, 10))
    assert 0 < short < long
    stored = expected_step(load_recipe(recipe, ["use_4bit=true"]), CONFIG, [1]).peak_gib
    assert stored < expected_step(load_recipe(recipe), CONFIG, [1]).peak_gib
