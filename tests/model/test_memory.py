from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from llmcls.model import memory
from llmcls.model.memory import (
    GIB,
    full_texts,
    guessed_config,
    memory_lines,
    memory_of,
    model_billions,
    planned_memory,
)
from llmcls.model.step_trace import MicroBatch, StepCost, TraceError
from llmcls.recipe.load import load_recipe

COST = StepCost(
    batch=MicroBatch((100, 50)), layers=10, weights=int(8 * GIB), layer_weights=int(0.5 * GIB),
    outside_weights=int(3 * GIB), trained=int(GIB), gradients=int(4 * GIB), optimizer_state=int(2 * GIB),
    activations=int(5 * GIB), weight_casts=int(GIB), kernels=(),
)  # fmt: skip


def test_one_process_holds_everything() -> None:
    found = memory_of(COST)
    assert (found.weights, found.optimizer, found.activations) == (8, 6, 5)
    assert found.total == 20
    assert "about 20.0 GiB on each GPU" in str(found)
    assert "150 tokens" in str(found)


def test_several_processes_exchange_a_copy_of_the_gradients() -> None:
    assert memory_of(COST, "none", 2).optimizer == 6 + 4


def test_shards_are_divided_and_two_layers_are_whole() -> None:
    zero2 = memory_of(COST, "optimizer_state", 4)
    # The 8-bit optimizer does not shard: two float32 moments.
    assert (zero2.weights, zero2.optimizer) == (8, (4 + 8) / 4)
    fsdp = memory_of(COST, "all", 4)
    assert (fsdp.weights, fsdp.optimizer, fsdp.activations) == (8 / 4 + 3 + 2 * 0.5, 3, 5 - 1)


def test_texts_of_full_length_fill_the_planned_micro_batch(write_recipe) -> None:
    recipe = load_recipe(write_recipe(), ["batch_size=4", "max_length=100", "gradient_accumulation_steps=1"])
    assert full_texts(recipe) == MicroBatch((100,) * 4, accumulates=False)
    recipe.train.micro_batch_tokens = 250
    assert full_texts(recipe) == MicroBatch((100,) * 2, accumulates=True)
    recipe.train.micro_batch_tokens = 50
    assert full_texts(recipe).lengths == (100,)


@pytest.mark.parametrize("billions", [0.1, 1.0, 1.7, 8.0, 70.0])
def test_a_guessed_model_is_not_smaller_than_its_name_says_and_not_much_larger(billions: float) -> None:
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(guessed_config(billions, 2))
    count = sum(p.numel() for p in model.parameters()) / 1e9
    assert billions <= count <= 1.35 * billions


def test_a_local_model_is_traced_and_another_one_guessed_from_its_size(write_recipe) -> None:
    recipe = load_recipe(write_recipe())
    found, basis = planned_memory(recipe, 1)
    assert basis == "traced from its configuration"
    assert found is not None
    assert 1.0 < found.total < 1.1
    guessed, basis = planned_memory(recipe, 1, "30M")
    assert basis == "guessed from 0.03 billion parameters"
    assert guessed is not None
    assert guessed.weights > 30 * found.weights
    recipe.model.model_name = "nobody/unknown"
    assert planned_memory(recipe, 1) == (None, "the shape of nobody/unknown is unknown")
    assert memory_lines(recipe, None, "none", 1) == ["no estimate: the shape of nobody/unknown is unknown"]


def test_a_model_that_cannot_be_traced_is_said(write_recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    class Untraceable:
        def __init__(self, *_: object) -> None:
            raise TraceError("RuntimeError: no")

    monkeypatch.setattr(memory, "StepTracer", Untraceable)
    recipe = load_recipe(write_recipe())
    found, basis = planned_memory(recipe, 1)
    assert found is None
    assert basis.endswith("tiny-llama cannot be traced (RuntimeError: no)")


def test_lines_name_the_model_and_the_sharding(write_recipe) -> None:
    recipe = load_recipe(write_recipe())
    recipe.model.model_name = "someone/some-30M"
    first, second = memory_lines(recipe, None, "all", 4)
    assert first == "someone/some-30M, guessed from 0.03 billion parameters, 4 GPU(s), sharded: all"
    assert second.startswith("about ")


def test_a_size_is_read_from_a_name() -> None:
    assert model_billions("Qwen/Qwen2.5-0.5B-Instruct") == 0.5
    assert model_billions("bert-base-uncased") is None
