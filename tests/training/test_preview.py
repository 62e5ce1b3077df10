from __future__ import annotations

import pytest
import torch
from accelerate import PartialState

from llmcls.recipe.load import load_recipe
from llmcls.training.inputs import load_inputs
from llmcls.training.preview import preview


@pytest.fixture
def lines(write_recipe):
    def of(*overrides: str) -> list[str]:
        recipe = load_recipe(write_recipe(), list(overrides))
        return preview(recipe, load_inputs(recipe, PartialState(cpu=True)))

    return of


def test_it_tells_model_storage_adapter_steps_and_results(lines) -> None:
    said = lines("exp.seeds=[1, 2, 3]", "num_train_epochs=4")
    model = next(line for line in said if line.startswith("model: "))
    assert "(llama)" in model
    assert model.endswith("parameters in float32, LoRA r=4")
    steps = next(line for line in said if line.startswith("steps: "))
    assert steps == "steps: 10 per epoch of 16 texts on one process, at most 4 epochs, 3 seed(s)"
    assert [line for line in said if line.startswith("memory: ")]
    assert not [line for line in said if line.startswith("advice: ")]
    assert said[-1] == "ok"


def test_full_fine_tuning_and_padding_are_said(lines) -> None:
    said = "\n".join(lines("lora_r=0", "packing=false"))
    assert "all weights" in said
    assert "padded" in next(line for line in said.splitlines() if line.startswith("micro-batches: "))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the advice names the memory of the GPU")
def test_4_bit_says_what_16_bits_would_need(lines) -> None:
    (advice,) = [line for line in lines("use_4bit=true") if line.startswith("advice: ")]
    assert "without 4-bit it needs about" in advice
