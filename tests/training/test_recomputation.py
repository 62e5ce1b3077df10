from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import PartialState

from llmcls.common.files import write_json
from llmcls.model.stand_in import DeviceKind
from llmcls.recipe.load import load_recipe
from llmcls.recipe.schema import Recipe
from llmcls.results.run_folder import RunFolder
from llmcls.train import main
from llmcls.training import recomputation
from llmcls.training.inputs import load_inputs
from llmcls.training.recomputation import needed_gib, settle_recomputation
from tests.helpers import fresh_accelerator
from tests.model.helpers import TEXTS, build, lengths_of, packed_row


def accelerator(device: str) -> Any:
    """One process on a device that need not exist."""
    return SimpleNamespace(device=torch.device(device), num_processes=1, is_main_process=True)


@pytest.fixture
def settled(write_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is decided, by overrides, device, GiB that are needed without recomputation, and sharding."""

    sharding = [False]

    def decide(
        overrides: list[str], device: str = "cuda", needed: float | None = 1.0, sharded: bool = False
    ) -> bool | None:
        sharding[0] = sharded
        asked: list[Recipe] = []

        def needs(recipe: Recipe) -> float | None:
            asked.append(recipe)
            return needed

        recipe = load_recipe(write_recipe(), overrides)
        found = settle_recomputation(recipe, RunFolder(tmp_path / "run_0"), accelerator(device), needs)
        assert all(r.train.gradient_checkpointing is False for r in asked)
        return found.train.gradient_checkpointing

    monkeypatch.setattr(recomputation, "_smallest_gpu", lambda a: 24.0 if a.device.type == "cuda" else None)
    monkeypatch.setattr(recomputation, "shards_state", lambda _: sharding[0])
    return decide


@pytest.mark.parametrize("needed, expected", [(1.0, False), (19.0, False), (20.0, True), (None, True)])
def test_a_4_bit_model_recomputes_on_a_gpu_only_what_does_not_fit(settled, needed, expected: bool) -> None:
    # 24 GiB x 0.8 = 19.2 GiB. What is not known may not fit.
    assert settled(["use_4bit=true"], needed=needed) is expected


@pytest.mark.parametrize(
    "overrides, device, sharded, expected",
    [
        (["use_4bit=true"], "cpu", False, True),
        (["use_4bit=true"], "cuda", True, True),
        (["use_4bit=true", "checkpoint_layers=1"], "cuda", False, True),
        (["use_4bit=true", "gradient_checkpointing=true"], "cuda", False, True),
        (["use_4bit=true", "gradient_checkpointing=false"], "cpu", False, False),
        ([], "cuda", False, False),
    ],
)
def test_elsewhere_the_recipe_decides(settled, overrides: list[str], device: str, sharded: bool, expected) -> None:
    assert settled(overrides, device, sharded=sharded) is expected


@pytest.mark.parametrize("noted, expected", [({"gradient_checkpointing": False}, False), ({}, True), (None, True)])
def test_a_resumed_run_keeps_what_it_started_with(settled, tmp_path: Path, noted, expected: bool) -> None:
    run = RunFolder(tmp_path / "run_0")
    run.last_checkpoint.mkdir(parents=True)
    if noted is not None:
        write_json(run.environment, noted)
    assert settled(["use_4bit=true"], needed=100.0 if not expected else 1.0) is expected


def test_the_need_is_traced_for_the_lengths_of_the_data(write_recipe, monkeypatch) -> None:
    path = write_recipe()
    inputs = load_inputs(load_recipe(path), PartialState(cpu=True))
    monkeypatch.setattr(recomputation, "kind_of", lambda device: DeviceKind(device.type))

    def needed(*overrides: str) -> float:
        found = needed_gib(
            load_recipe(path, ["use_4bit=true", "pooling=mean", *overrides]), inputs, accelerator("cuda")
        )
        assert found is not None
        return found

    keeping, recomputing = needed("gradient_checkpointing=false"), needed("gradient_checkpointing=true")
    assert keeping > recomputing > 1.0
    # One text of the data at a time.
    assert needed("gradient_checkpointing=false", "micro_batch_tokens=1") < keeping


def test_the_run_folder_says_what_was_decided(write_recipe, tmp_path: Path) -> None:
    recipe = write_recipe(train__max_steps=1, train__gradient_checkpointing=True)
    main([str(recipe)])
    run = tmp_path / "outputs" / "tiny-llama" / "products" / "run_0"
    assert json.loads((run / "environment.json").read_text())["gradient_checkpointing"] is True


def test_recomputing_changes_no_bit_of_a_gradient_with_dropout(write_recipe) -> None:
    path = write_recipe(model__lora_dropout=0.5)

    def gradients(*overrides: str) -> dict[str, torch.Tensor]:
        fresh_accelerator()
        torch.manual_seed(1)
        model = build(path, *overrides).train()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        torch.manual_seed(2)
        model(packed_row(TEXTS), lengths_of(TEXTS)).square().sum().backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    kept, recomputed = gradients(), gradients("gradient_checkpointing=true")
    assert kept.keys() == recomputed.keys()
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)
