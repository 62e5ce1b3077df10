from __future__ import annotations

from pathlib import Path

import pytest

from llmcls.recipe.load import load_recipe, recipe_to_yaml
from llmcls.recipe.shareable import hub_name, without_paths


@pytest.mark.parametrize(
    ("name", "on_hub"),
    [("org/model-1.5_b", True), ("bert", True), ("/models/x", False), ("~/x", False), ("..", False), ("a/b/c", False),
     ("C:\\models\\x", False), ("a\nb", False)],
)  # fmt: skip
def test_a_name_on_the_hub_is_told_from_a_folder(name: str, on_hub: bool) -> None:
    assert hub_name(name) == (name if on_hub else None)


def test_a_folder_that_looks_like_a_name_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_name("org/model") is None


def test_no_path_and_no_token_is_left(write_recipe, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(model__hf_token="hf_0123456789"))
    text = recipe_to_yaml(without_paths(recipe))
    assert str(tmp_path.parent) not in text
    assert "hf_0123456789" not in text
    for line in ("train_csv: train.csv", "test_csv: test.csv", "model_name: tiny-llama", "output_root: outputs"):
        assert line in text
    assert without_paths(recipe).data.text_fields == recipe.data.text_fields
