"""The profiles for one GPU, started as a user starts them."""

from __future__ import annotations

from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch

from llmcls.recipe.load import load_recipe
from tests.conftest import WriteRecipe
from tests.cuda import NEEDS_GPU
from tests.helpers import launch, read_json

pytestmark = NEEDS_GPU

BF16 = {
    "model__torch_dtype": "bfloat16", "model__lora_target_modules": ["all-linear"], "train__micro_batch_tokens": 512,
    "train__num_train_epochs": 1,
}  # fmt: skip
FOUR_BIT = BF16 | {"model__use_4bit": True, "train__optim_8bit_when_4bit": False}


def finished(done: CompletedProcess[str], recipe: Path) -> dict[str, Any]:
    """environment.json of the run that a command finished."""
    assert done.returncode == 0, done.stderr[-3000:]
    (run,) = Path(load_recipe(recipe).exp.output_root).rglob("run_0")
    assert 0 < read_json(run / "metrics.json")["validation"]["f1_micro"] <= 1
    environment: dict[str, Any] = read_json(run / "environment.json")
    assert environment["device"] == torch.cuda.get_device_name()
    return environment


def test_the_profile_of_a_laptop_trains_a_4_bit_model(write_recipe: WriteRecipe) -> None:
    pytest.importorskip("bitsandbytes")
    recipe = write_recipe(**FOUR_BIT)
    environment = finished(launch(1, "llmcls.train", recipe, profile="laptop_4bit"), recipe)
    assert (environment["engine"], environment["mixed_precision"]) == ("single", "bf16")


@pytest.mark.parametrize("profile, changes", [("fsdp_qlora", FOUR_BIT), ("fsdp", BF16)])
def test_a_sharding_profile_trains_in_one_process(
    write_recipe: WriteRecipe, profile: str, changes: dict[str, Any]
) -> None:
    # One process has nothing to share out, but gathers, casts and saves as several do.
    if "model__use_4bit" in changes:
        pytest.importorskip("bitsandbytes")
    recipe = write_recipe(**changes)
    environment = finished(launch(1, "llmcls.train", recipe, profile=profile), recipe)
    assert (environment["engine"], environment["processes"]) == ("fsdp", 1)
