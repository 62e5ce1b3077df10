from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from llmcls.diagnosis import choices
from tests.diagnosis.helpers import find


@pytest.fixture
def near_sighted(tiny_llama: Path, tmp_path: Path) -> str:
    """The configuration of a Mistral whose layers see 8 tokens, which rules packing out."""
    folder = tmp_path / "near-sighted"
    shutil.copytree(tiny_llama, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 8}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(folder)


def test_a_model_that_cannot_be_packed_is_no_fault_unless_packing_was_asked_for(
    near_sighted: str, write_recipe, tmp_path: Path
) -> None:
    recipe = write_recipe(model__model_name=near_sighted)
    found = find("attention", tmp_path, recipe)
    assert (found.status, found.found) == ("ok", "padded: the layers of the model see only a part of the text")
    assert find("attention", tmp_path, recipe, "packing=true").status == "fault"
    assert find("attention", tmp_path, recipe, "packing=false").found == "padded (train.packing is false)"


def test_on_a_gpu_attention_that_is_not_the_fastest_is_a_warning(write_recipe, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(choices, "device_of", lambda subject: torch.device("cuda"))
    reason = "packed, attention text by text: flash attention does not work here"
    monkeypatch.setattr(choices, "packing_in_words", lambda config, request: reason)
    found = find("attention", tmp_path, write_recipe())
    assert (found.status, found.found) == ("warning", reason)


def test_the_kernels_of_a_model_and_why_they_are_not_compiled(write_recipe, tmp_path: Path) -> None:
    recipe = write_recipe()
    found = find("kernels", tmp_path, recipe)
    assert (found.status, found.found) == ("ok", "kernels: fused, not compiled (a small model on a CPU)")
    assert find("kernels", tmp_path, recipe, "kernels=off").found == "train.kernels is off"
