from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from llmcls.training import checkpoints
from tests.diagnosis.helpers import find


def test_a_resume_that_loses_the_state_of_the_optimizer_is_a_fault(
    write_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "load_optimizer_state", lambda *_: None)
    found = find("resume", tmp_path / "doctor", write_recipe())
    assert found.status == "fault"
    assert found.found.startswith("a resumed run ends with other weights, by ")
    # Nothing of it is written where the recipe's own results go.
    assert not (tmp_path / "outputs").exists()


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_four_bit_training_that_does_not_learn_is_a_fault(
    write_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: None)
    found = find("4bit", tmp_path, write_recipe())
    assert found.status == "fault"
    assert found.found.startswith("4-bit training does not learn: loss 0.")
    assert "with 14 layers in 4 bits" in found.found


def test_a_recipe_that_trains_all_weights_needs_no_four_bits(write_recipe, tmp_path: Path) -> None:
    assert find("4bit", tmp_path, write_recipe(model__lora_r=0)).status == "skipped"
