"""A training on a GPU that was stopped and resumed, against one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llmcls.common.signals import STOP_AFTER
from llmcls.recipe import defaults
from tests.conftest import WriteRecipe
from tests.cuda import NEEDS_GPU
from tests.helpers import read_json, train

pytestmark = NEEDS_GPU

STEPS, CUT = 6, 3
LORA = {"model__lora_target_modules": ["all-linear"]}
BF16 = {"model__torch_dtype": "bfloat16"}
FOUR_BIT = LORA | BF16 | {"model__use_4bit": True}


@pytest.fixture
def recipe(write_recipe: WriteRecipe) -> WriteRecipe:
    """A function that writes a recipe of few steps, each of several micro-batches, with changes."""

    def write(**changes: Any) -> Path:
        return write_recipe(
            **{
                "data__val_csv": None, "data__test_csv": None, "train__max_steps": STEPS, "train__logging_steps": 1,
                "train__train_metrics_rows": 0, "train__micro_batch_tokens": 256,
            }
            | changes
        )  # fmt: skip

    return write


def weights_after(recipe: Path, name: str, monkeypatch: pytest.MonkeyPatch, cut: bool = False) -> dict[str, Any]:
    """The trained weights of a run, which is stopped and resumed if ``cut``."""
    if cut:
        with monkeypatch.context() as patch:
            patch.setenv(STOP_AFTER, str(CUT))
            with pytest.raises(SystemExit):
                train(recipe, f"exp.run_name={name}")
    run = train(recipe, f"exp.run_name={name}") / "run_0"
    progress = read_json(run / "checkpoints/last/progress.json")
    assert (progress["step"], progress["skipped_steps"]) == (STEPS, 0)
    environment = read_json(run / "environment.json")
    assert environment["device"] == torch.cuda.get_device_name()
    (file,) = (run / "model").glob("*model.safetensors")
    return load_file(file) | {"optimizer": environment["optimizer"]}


@pytest.mark.parametrize(
    "changes, optimizer",
    [
        (LORA, "AdamW (torch)"),
        (LORA | BF16, "AdamW (torch)"),
        ({"model__lora_r": 0}, "AdamW (torch)"),
        (BF16 | {"model__lora_r": 0}, "AdamW (torch)"),
        (FOUR_BIT, "AdamW (torch)"),
        # Smaller matrices have no state in 8 bits.
        (FOUR_BIT | {"model__lora_r": 64}, "AdamW8bit (bitsandbytes)"),
    ],
    ids=["LoRA float32", "LoRA bf16", "all weights float32", "all weights bf16", "4-bit", "4-bit, 8-bit AdamW"],
)
def test_a_deterministic_training_resumes_to_the_last_bit(
    recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], optimizer: str
) -> None:
    if "model__use_4bit" in changes:
        pytest.importorskip("bitsandbytes")
        if "8bit" in optimizer:
            monkeypatch.setattr(defaults, "EIGHT_BIT_FROM", 0)
    path = recipe(train__deterministic=True, **changes)
    try:
        whole, resumed = (weights_after(path, f"cut-{cut}", monkeypatch, cut) for cut in (False, True))
    finally:
        torch.use_deterministic_algorithms(False)
    assert whole.pop("optimizer") == resumed.pop("optimizer") == optimizer
    assert whole.keys() == resumed.keys()
    different = [name for name, weight in whole.items() if not torch.equal(weight, resumed[name])]
    assert different == []
    trained = [name for name in whole if "lora_B" in name or "layers" in name]
    assert all(bool(whole[name].isfinite().all() and whole[name].any()) for name in trained)


def test_any_other_training_resumes_to_rounding(recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recipe(**LORA | BF16)
    whole, resumed = (weights_after(path, f"cut-{cut}", monkeypatch, cut) for cut in (False, True))
    # These matrices are zero before the first step.
    changed = [name for name in whole if "lora_B" in name]
    # The last layer of the tiny Llama, too.
    assert len(changed) == 14
    difference, change = (
        torch.cat([(weights[name] - other.get(name, 0.0)).flatten() for name in changed]).norm()
        for weights, other in ((whole, resumed), (whole, {}))
    )
    assert float(change) > 0
    assert float(difference) <= 5e-2 * float(change)
