from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType

from llmcls.common.user_error import UserError
from llmcls.engine.accelerator import (
    any_rank,
    autocast_dtype,
    engine_name,
    gradients_kept_local,
    loading_device,
    open_accelerator,
    prepare,
    shards_state,
    sum_over_ranks,
    unwrapped,
    zero_stage,
)
from llmcls.recipe.load import load_recipe
from llmcls.training.optimizer import build_optimizer
from tests.helpers import refusal
from tests.model.helpers import CPU, build

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the engine starts")


def test_processes_that_do_not_form_a_group_are_stopped(write_recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a machine whose GPUs this process cannot use: accelerate then makes every process its own group.
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="the launcher started 2 processes, but the process group has 1"):
        open_accelerator(load_recipe(write_recipe()))


@without_gpu
@pytest.mark.parametrize("engine", ["FSDP", "DEEPSPEED"])
def test_a_sharded_profile_on_one_process_without_gpus_is_refused(
    write_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, engine: str
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    found = refusal(capsys, "train", write_recipe())
    assert f"the profile asks for {engine} in 1 process(es), but no GPU is visible" in found
    assert "llmcls.rehearse" in found
    assert not (tmp_path / "outputs").exists()


@without_gpu
def test_prediction_needs_no_sharded_engine(write_recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    accelerator = open_accelerator(load_recipe(write_recipe()), training=False)
    assert engine_name(accelerator) == "single"
    assert "ACCELERATE_USE_FSDP" not in os.environ


@pytest.mark.parametrize(
    "dtype, of_profile, explicit, expected",
    [
        ("float32", None, None, "no"),
        ("bfloat16", None, None, "bf16"),
        ("float32", "bf16", None, "bf16"),
        ("bfloat16", "no", None, "bf16"),
        ("float32", None, "bf16", "bf16"),
    ],
)
def test_the_recipe_decides_the_precision_and_the_profile_that_of_float32(
    write_recipe, monkeypatch: pytest.MonkeyPatch, dtype: str, of_profile: str, explicit: str, expected: str
) -> None:
    if of_profile:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", of_profile)
    recipe = load_recipe(write_recipe(), [f"torch_dtype={dtype}"])
    accelerator = open_accelerator(recipe, mixed_precision=explicit)
    assert accelerator.mixed_precision == expected
    assert autocast_dtype(accelerator) == {"no": None, "bf16": torch.bfloat16}[expected]


@without_gpu
def test_one_process_without_a_gpu(write_recipe) -> None:
    recipe_path = write_recipe()
    accelerator = open_accelerator(load_recipe(recipe_path))
    assert engine_name(accelerator) == "single"
    assert accelerator.device == loading_device(accelerator) == CPU
    assert not shards_state(accelerator)
    assert zero_stage(accelerator) is None
    assert any_rank(accelerator, True, False) == (True, False)
    values = torch.tensor([1.0, 2.0])
    assert torch.equal(sum_over_ranks(accelerator, values), values)


def test_the_classifier_is_found_inside_what_the_engine_returns(write_recipe) -> None:
    recipe_path = write_recipe()
    recipe = load_recipe(recipe_path)
    accelerator, classifier = open_accelerator(recipe), build(recipe_path)
    model, optimizer = prepare(accelerator, classifier, build_optimizer(classifier, recipe, CPU))
    assert unwrapped(model) is classifier
    assert unwrapped(torch.nn.DataParallel(model)) is classifier
    assert optimizer.param_groups[0]["lr"] == recipe.train.learning_rate


def test_gradients_are_exchanged_in_the_last_micro_batch_only(write_recipe) -> None:
    recipe_path = write_recipe()
    accelerator, model = open_accelerator(load_recipe(recipe_path)), build(recipe_path)
    for last in (False, True):
        with gradients_kept_local(accelerator, model, last):
            assert accelerator.sync_gradients is last
        assert accelerator.sync_gradients


@pytest.mark.parametrize(
    "kind, device", [(DistributedType.FSDP, "cpu"), (DistributedType.MULTI_GPU, "cuda"), (DistributedType.NO, "cuda")]
)
def test_a_model_that_will_be_sharded_is_loaded_into_main_memory(kind: DistributedType, device: str) -> None:
    accelerator: Any = SimpleNamespace(distributed_type=kind, device=torch.device("cuda"))
    assert loading_device(accelerator).type == device


def test_only_a_recipe_that_asks_for_it_gets_deterministic_kernels(write_recipe, monkeypatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    recipe = write_recipe()
    open_accelerator(load_recipe(recipe))
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    open_accelerator(load_recipe(recipe, ["train.deterministic=true"]))
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    open_accelerator(load_recipe(recipe))
    assert not torch.are_deterministic_algorithms_enabled()


def test_float32_is_exact(write_recipe) -> None:
    # TF32 would round what it multiplies to 10 bits. Who wants speed writes model.torch_dtype: bfloat16.
    open_accelerator(load_recipe(write_recipe()))
    assert torch.get_float32_matmul_precision() == "highest"
