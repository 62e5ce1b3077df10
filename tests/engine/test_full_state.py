"""Weights and optimizer state on one process; tests/distributed/test_engines.py has the sharded engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from llmcls.common.user_error import UserError
from llmcls.engine import full_state
from llmcls.engine.accelerator import open_accelerator, prepare
from llmcls.engine.full_state import (
    full_optimizer_state,
    load_optimizer_state,
    load_trained_weights,
    trained_parameters,
    trained_weights,
)
from llmcls.recipe import defaults
from llmcls.recipe.load import load_recipe
from llmcls.training.optimizer import build_optimizer
from tests.helpers import fresh_accelerator
from tests.model.helpers import CPU, TEXTS, build, lengths_of, packed_row


def start(recipe_path: Path, *overrides: str) -> tuple[Any, Any, Any]:
    """Accelerator, model and optimizer."""
    fresh_accelerator()
    recipe = load_recipe(recipe_path, list(overrides))
    accelerator, model = open_accelerator(recipe), build(recipe_path, *overrides).train()
    return (accelerator, *prepare(accelerator, model, build_optimizer(model, recipe, CPU)))


def step(model: Any, optimizer: Any) -> None:
    """One optimizer step on fixed texts, without dropout."""
    optimizer.zero_grad()
    model.eval()(packed_row(TEXTS), lengths_of(TEXTS)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("overrides", [[], ["use_4bit=true"], ["lora_r=0"]], ids=["adapter", "8-bit AdamW", "whole"])
def test_restored_training_takes_the_same_next_step(write_recipe, overrides: list[str], monkeypatch) -> None:
    monkeypatch.setattr(defaults, "EIGHT_BIT_FROM", 0)
    path = write_recipe(model__lora_target_modules=["all-linear"])
    accelerator, model, optimizer = start(path, *overrides)
    for _ in range(2):
        step(model, optimizer)
    weights = trained_weights(accelerator, model)
    state = full_optimizer_state(accelerator, model, optimizer)
    step(model, optimizer)
    expected = trained_weights(accelerator, model)
    assert all(not torch.equal(weights[name], expected[name]) for name in weights if "score" in name)

    accelerator, model, optimizer = start(path, *overrides)
    load_trained_weights(accelerator, model, weights)
    load_optimizer_state(accelerator, model, optimizer, state)
    step(model, optimizer)
    found = trained_weights(accelerator, model)
    assert found.keys() == expected.keys() == trained_parameters(model).keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_is_saved_is_a_copy_on_the_cpu_by_name(write_recipe) -> None:
    accelerator, model, optimizer = start(write_recipe())
    step(model, optimizer)
    weights = trained_weights(accelerator, model)
    state = full_optimizer_state(accelerator, model, optimizer)
    assert weights.keys() == state.keys()
    assert all("score" in name or "lora_" in name for name in weights)
    before = {name: tensor.clone() for name, tensor in weights.items()}
    step(model, optimizer)
    assert all(torch.equal(weights[name], before[name]) for name in weights)
    for name, values in state.items():
        assert set(values) == {"step", "exp_avg", "exp_avg_sq"}
        assert float(values["step"]) == 1
        assert values["exp_avg"].shape == weights[name].shape


def test_weights_of_another_model_are_refused(write_recipe) -> None:
    path = write_recipe()
    accelerator, model, _ = start(path)
    weights = trained_weights(accelerator, model)
    accelerator, other, _ = start(path, "lora_target_modules=[k_proj]")
    with pytest.raises(UserError, match=r"the checkpoint belongs to another model: .*k_proj"):
        load_trained_weights(accelerator, other, weights)


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Any]:
    """A mesh of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("place", ["cpu", "meta"])
def test_the_state_of_a_sharded_parameter_goes_where_its_parts_are(mesh: Any, place: str) -> None:
    # With offloading, they are not where the mesh computes: in main memory for a mesh of GPUs, here nowhere.
    parts = torch.zeros(4, 3, device=place)
    parameter = DTensor.from_local(parts, mesh, [Shard(0)], run_check=False)
    found = full_state._like(torch.ones(4, 3), parameter)
    assert isinstance(found, DTensor)
    assert found.placements == parameter.placements
    assert found.to_local().device == parts.device
