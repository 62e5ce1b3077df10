from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from llmcls.common.user_error import UserError
from llmcls.recipe.load import load_recipe, recipe_to_yaml
from llmcls.recipe.schema import SECTIONS

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REUTERS_DIR", "somewhere")
    recipe = load_recipe(path)
    assert recipe.data.label_columns
    assert load_recipe(path, ["exp.seeds=[9]"]).exp.seeds == [9]


def test_the_reference_recipe_runs_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "amazon.yaml"
    path.write_text(
        """
data:  {dataset_name: amazon_13k, id_column: uid, text_fields: , target_text_column: text, max_length: 1024,
        train_csv: a/train.csv, val_csv: a/validation.csv, test_csv: a/test.csv, label_columns: [books, new]}
model: {model_name: meta-llama/Llama-3.2-1B, hf_token: null, problem_type: multi_label_classification, use_4bit: true,
        torch_dtype: bfloat16, lora_r: 2, lora_alpha: 2, lora_dropout: 0.05, lora_target_modules: [q_proj, v_proj]}
train: {batch_size: 4, num_train_epochs: 20, learning_rate: 0.0002, weight_decay: 0.01, gradient_accumulation_steps: 8,
        early_stopping_patience: 2, metric_for_best_model: f1_micro, save_total_limit: 1, optim_8bit_when_4bit: true,
        report_to: [tensorboard]}
exp:   {output_root: outputs, seeds: [1, 3, 4, 5], run_name: null}
""",
        encoding="utf-8",
    )
    recipe = load_recipe(path)
    assert recipe.data.text_fields is None
    assert recipe.data.target_text_column == "text"
    assert recipe.exp.seeds == [1, 3, 4, 5]
    assert recipe.train.learning_rate == pytest.approx(2e-4)


def test_overrides_are_read_as_yaml_and_need_no_section_when_unambiguous(write_recipe) -> None:
    recipe = load_recipe(write_recipe(), ["train.learning_rate=1e-4", "exp.seeds=[1, 2]", "use_4bit=true"])
    assert recipe.train.learning_rate == pytest.approx(1e-4)
    assert recipe.exp.seeds == [1, 2]
    assert recipe.model.use_4bit is True


def test_environment_variables_and_home_are_expanded(write_recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_DATA", "/data/set")
    path = write_recipe(
        data__train_csv="${MY_DATA}/train.csv", data__test_csv="~/t.csv", data__val_csv="${NONE:-v}.csv"
    )
    data = load_recipe(path).data
    assert data.train_csv == "/data/set/train.csv"
    assert data.test_csv == str(Path("~/t.csv").expanduser())
    assert data.val_csv == "v.csv"


def test_an_unset_variable_is_named(write_recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_DIR", raising=False)
    with pytest.raises(UserError, match=r"data\.train_csv uses \$\{NO_SUCH_DIR\}, which is not set"):
        load_recipe(write_recipe(data__train_csv="${NO_SUCH_DIR}/t.csv"))


def test_the_saved_copy_reads_back_the_same_and_holds_no_token(write_recipe, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(model__hf_token="hf_secret"))
    text = recipe_to_yaml(recipe)
    assert "hf_secret" not in text
    assert "hf_secret" not in repr(recipe)
    copy = tmp_path / "copy.yaml"
    copy.write_text(text, encoding="utf-8")
    assert recipe_to_yaml(load_recipe(copy)) == text


def test_every_key_is_documented_in_the_schema() -> None:
    undocumented = [f.name for kind in SECTIONS.values() for f in fields(kind) if not f.metadata.get("doc")]
    assert undocumented == []
