from __future__ import annotations

import pytest
from transformers import LlamaConfig

from llmcls.diagnosis import expectation
from llmcls.diagnosis.expectation import expected_step
from llmcls.diagnosis.findings import NotApplicable
from llmcls.model.step_trace import TraceError
from llmcls.recipe.load import load_recipe
from tests.model.helpers import CPU

# Seven linear layers: 64 x 64 four times, 64 x 128 three times.
CONFIG = LlamaConfig(
    hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
    vocab_size=100, num_labels=2, pad_token_id=0,
)  # fmt: skip
WEIGHTS = 4 * 64 * 64 + 3 * 64 * 128


def test_the_operations_of_full_fine_tuning_are_three_passes_of_its_matrix_products(write_recipe) -> None:
    recipe = load_recipe(write_recipe(model__lora_r=0, model__pooling="mean"))
    products = 3 * 3 * 2 * WEIGHTS * 40
    attention = 3 * 3.5 * 2 * 64 * (10**2 + 30**2)
    assert expected_step(recipe, CONFIG, [10, 30], CPU).flops == pytest.approx(products + attention, rel=0.05)


def test_an_adapter_needs_fewer_operations(write_recipe) -> None:
    full = load_recipe(write_recipe(model__lora_r=0, model__pooling="mean"))
    adapter = load_recipe(write_recipe(model__lora_r=4, model__pooling="mean"))
    flops = [expected_step(recipe, CONFIG, [10, 30], CPU).flops for recipe in (adapter, full)]
    assert 0.6 < flops[0] / flops[1] < 0.9


def test_more_tokens_need_more_memory_and_four_bits_less(write_recipe) -> None:
    recipe = write_recipe()
    short, long = (expected_step(load_recipe(recipe), CONFIG, [100] * texts, CPU).peak_gib for texts in (1, 10))
    assert 0 < short < long
    stored = expected_step(load_recipe(recipe, ["use_4bit=true"]), CONFIG, [1], CPU).peak_gib
    assert stored < expected_step(load_recipe(recipe), CONFIG, [1], CPU).peak_gib


def test_a_model_that_cannot_be_traced_has_no_expectation(write_recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise TraceError("it reads values")

    monkeypatch.setattr(expectation, "StepTracer", refuse)
    with pytest.raises(NotApplicable, match="cannot be traced"):
        expected_step(load_recipe(write_recipe()), CONFIG, [1], CPU)
