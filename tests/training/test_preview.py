from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState

from llmcls.model.cards import UNMEASURED_EFFICIENCY, efficiency_file, find_card, write_efficiency
from llmcls.model.stand_in import DeviceKind
from llmcls.model.step_trace import StepTracer, TraceError
from llmcls.recipe.load import load_recipe
from llmcls.training.inputs import load_inputs
from llmcls.training.preview import preview, target_of

pytestmark = pytest.mark.slow


@pytest.fixture
def lines(write_recipe):
    def of(*overrides: str, **options) -> list[str]:
        recipe = load_recipe(write_recipe(), list(overrides))
        return preview(recipe, load_inputs(recipe, PartialState(cpu=True)), **options)

    return of


def test_it_tells_model_storage_adapter_steps_and_results(lines) -> None:
    said = lines("exp.seeds=[1, 2, 3]", "num_train_epochs=4")
    model = next(line for line in said if line.startswith("model: "))
    assert "(llama)" in model
    assert model.endswith("parameters in float32, LoRA r=4")
    steps = next(line for line in said if line.startswith("steps: "))
    assert steps == "steps: 10 per epoch of 16 texts on one process, at most 4 epochs, 3 seed(s)"
    (memory,) = [line for line in said if line.startswith("memory: ")]
    assert memory.startswith(
        "memory: about 1.0 GiB on each GPU: weights 0.00, gradients and optimizer 0.00, activations"
    )
    assert not [line for line in said if line.startswith(("time: ", "cost: "))]
    assert not [line for line in said if line.startswith("advice: ")]
    assert said[-1].startswith("results: ")


def test_a_card_tells_whether_it_fits_and_the_time_and_cost_of_an_epoch(lines) -> None:
    card = find_card("T4")
    said = lines(card=card, price=3.6)
    (memory,) = [line for line in said if line.startswith("memory: ")]
    assert memory.endswith("; fits into the 15 GiB of the GPU")
    (time,) = [line for line in said if line.startswith("time: ")]
    assert re.match(r"time: about \d+ s per epoch on one Tesla T4, evaluation not included: ", time)
    assert time.endswith("of which 50% are reached (a guess, not measured)")
    (cost,) = [line for line in said if line.startswith("cost: ")]
    assert re.fullmatch(r"cost: about 0\.0\d per epoch at 3\.6 per hour", cost)
    small = replace(card, gib=0.5)
    assert any(line.endswith("; does not fit into the 0 GiB of the GPU") for line in lines(card=small))


def test_a_gpu_of_this_machine_is_priced_with_its_measured_efficiency(write_recipe, monkeypatch) -> None:
    recipe = load_recipe(write_recipe())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA GeForce RTX 3060")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=12 << 30))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    found = target_of(recipe)
    assert (found.card, found.gib, found.measured) == (find_card("RTX 3060"), 12, False)
    assert found.kind == DeviceKind("cuda", flash=True)
    write_efficiency(efficiency_file(recipe.exp.output_root), "NVIDIA GeForce RTX 3060", 0.7)
    assert (target_of(recipe).efficiency, target_of(recipe).measured) == (0.7, True)
    # A card that is named is another machine's.
    assert target_of(recipe, find_card("T4")).efficiency == UNMEASURED_EFFICIENCY


def test_a_model_that_cannot_be_traced_is_said(lines, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise TraceError("RuntimeError: no")

    monkeypatch.setattr(StepTracer, "cost", refuse)
    assert "memory: not known, because the model cannot be traced (RuntimeError: no)" in lines()


def test_full_fine_tuning_and_padding_are_said(lines) -> None:
    said = "\n".join(lines("lora_r=0", "packing=false"))
    assert "all weights" in said
    assert "padded" in next(line for line in said.splitlines() if line.startswith("micro-batches: "))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the advice names the memory of the GPU")
def test_4_bit_says_what_16_bits_would_need(lines) -> None:
    (advice,) = [line for line in lines("use_4bit=true") if line.startswith("advice: ")]
    assert "without 4-bit it needs about" in advice
