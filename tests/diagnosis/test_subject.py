from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmcls.diagnosis import subject as material
from llmcls.diagnosis.findings import NotApplicable, Subject
from llmcls.recipe.load import load_recipe
from tests.diagnosis.helpers import find


def test_without_a_recipe_a_llama_with_grouped_heads_stands_in(tmp_path: Path) -> None:
    subject = Subject(None, tmp_path)
    recipe, config = material.recipe_of(subject), material.config_of(subject)
    assert recipe is material.recipe_of(subject)
    assert config.model_type == "llama"
    assert config.num_attention_heads > config.num_key_value_heads
    assert len(material.inputs_of(subject).train_split) == 97
    on_cpu = material.device_of(subject).type == "cpu"
    assert material.dtype_of(subject) == (torch.float32 if on_cpu else torch.bfloat16)
    assert "a Llama with layers like those of" in find("recipe", tmp_path / "other").found


def test_a_recipe_with_its_model_and_data_is_usable(write_recipe, tmp_path: Path) -> None:
    found = find("recipe", tmp_path / "doctor", write_recipe())
    assert (found.status, found.found) == ("ok", "tiny-llama (llama), multi_label_classification")


def test_missing_data_is_a_warning_and_generated_rows_replace_it(write_recipe, tmp_path: Path) -> None:
    recipe = write_recipe(data__train_csv="none.csv")
    found = find("recipe", tmp_path / "doctor", recipe)
    assert found.status == "warning"
    assert "1 data file(s) do not exist, generated rows replace them" in found.found


def test_a_model_that_cannot_be_loaded_is_a_fault_of_one_check_only(write_recipe, tmp_path: Path) -> None:
    recipe = write_recipe(model__model_name=str(tmp_path / "nowhere"))
    found = find("recipe", tmp_path / "doctor", recipe)
    assert found.status == "fault"
    assert "is not a local folder" in found.found
    assert "check the name" in found.advice
    with pytest.raises(NotApplicable, match="the model cannot be loaded; see `recipe`"):
        material.config_of(Subject(load_recipe(recipe), tmp_path / "doctor"))
    assert find("attention", tmp_path / "doctor", recipe).status == "skipped"
