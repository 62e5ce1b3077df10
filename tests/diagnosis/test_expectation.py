from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig

from llmcls.diagnosis import expectation
from llmcls.diagnosis.expectation import expected_step
from llmcls.diagnosis.findings import NotApplicable
from llmcls.model.step_trace import TraceError
from llmcls.recipe.load import load_recipe
from tests.model.helpers import CPU

CONFIG = LlamaConfig(
    hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
    vocab_size=100, num_labels=2, pad_token_id=0,
)  # fmt: skip


def test_more_tokens_need_more_memory_and_operations_and_four_bits_less_memory(write_recipe) -> None:
    recipe = write_recipe()
    short, long = (expected_step(load_recipe(recipe), CONFIG, [100] * texts, CPU) for texts in (1, 10))
    assert 0 < short.peak_gib < long.peak_gib
    assert long.flops == pytest.approx(10 * short.flops, rel=0.05)
    assert short.least_seconds is None
    stored = expected_step(load_recipe(recipe, ["use_4bit=true"]), CONFIG, [1], CPU).peak_gib
    assert stored < expected_step(load_recipe(recipe), CONFIG, [1], CPU).peak_gib


def test_a_known_card_has_a_least_time(write_recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    found = expected_step(load_recipe(write_recipe()), CONFIG, [100], torch.device("cuda"))
    assert found.least_seconds is not None
    assert found.least_seconds > 0


def test_a_model_that_cannot_be_traced_is_not_expected_to_cost_anything(
    write_recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise TraceError("it reads values")

    monkeypatch.setattr(expectation, "StepTracer", refuses)
    with pytest.raises(NotApplicable, match=r"the model cannot be traced \(it reads values\)"):
        expected_step(load_recipe(write_recipe()), CONFIG, [100], CPU)
