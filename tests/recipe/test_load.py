from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from llmcls.recipe.load import load_recipe, recipe_to_dict, recipe_to_yaml
from tests.helpers import ROOT, refusal

OVERRIDES: list[tuple[list[str], str]] = [
    (["train.lr=1"], "command line: train.lr is not a key; did you mean learning_rate?"),
    (["trian.batch_size=1"], "command line: trian is not a section of a recipe; did you mean train?"),
    (["batch_siz=1"], "command line: batch_siz is not a recipe key; did you mean batch_size?"),
    (["epochs=3"], "command line: epochs is not a recipe key; did you mean num_train_epochs?"),
    (["batch_size"], "'batch_size' is not an override; write section.key=value"),
    (["exp.seeds=[1"], "the value of exp.seeds is not valid YAML"),
]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_of_the_project_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REUTERS_DIR", "BANKING77_DIR"):
        monkeypatch.setenv(name, "somewhere")
    recipe = load_recipe(path)
    assert recipe.data.label_columns
    assert load_recipe(path, ["exp.seeds=[9]"]).exp.seeds == [9]


def test_the_reference_recipe_loads_unchanged(tmp_path: Path) -> None:
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


def test_overrides_are_read_as_yaml_and_need_no_section_if_unambiguous(write_recipe) -> None:
    recipe = load_recipe(write_recipe(), ["train.learning_rate=1e-4", "exp.seeds=[1, 2]", "use_4bit=true"])
    assert recipe.train.learning_rate == pytest.approx(1e-4)
    assert recipe.exp.seeds == [1, 2]
    assert recipe.model.use_4bit is True


@pytest.mark.parametrize("overrides, sentence", OVERRIDES, ids=[sentence[:50] for _, sentence in OVERRIDES])
def test_an_error_in_an_override_is_one_sentence(write_recipe, capsys, overrides: list[str], sentence: str) -> None:
    assert sentence in refusal(capsys, "folder", write_recipe(), *overrides)


def test_a_file_that_does_not_exist_or_is_not_yaml(tmp_path: Path, capsys) -> None:
    assert "no such recipe file" in refusal(capsys, "folder", tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("data: {a: [1\nmodel: 3", encoding="utf-8")
    assert f"{broken}, line 2: not valid YAML" in refusal(capsys, "folder", broken)
    # A misspelt name: the folder's recipes are listed.
    assert "broken.yaml" in refusal(capsys, "folder", tmp_path / "none.yaml")
    broken.write_text("just text", encoding="utf-8")
    assert "a recipe needs the sections data, model, train, exp" in refusal(capsys, "folder", broken)
    broken.write_text("dat: {}", encoding="utf-8")
    assert "dat is not a section of a recipe; did you mean data?" in refusal(capsys, "folder", broken)
    broken.write_text("data: 3", encoding="utf-8")
    assert "section data must " in refusal(capsys, "folder", broken)
    broken.write_bytes(b"data: \xff")
    assert "cannot be read" in refusal(capsys, "folder", broken)


def test_a_misspelt_key_gets_the_nearest_one(write_recipe, capsys) -> None:
    found = refusal(capsys, "folder", write_recipe(train__learning_rte=1e-4))
    assert "recipe.yaml: train.learning_rte is not a key; did you mean learning_rate?" in found


def test_empty_values_and_sections_mean_the_default(write_recipe) -> None:
    recipe = load_recipe(write_recipe(train__learning_rate=None, train__loss=None))
    assert recipe.train.learning_rate == pytest.approx(2e-4)
    assert recipe.train.loss == "cross_entropy"


@pytest.mark.parametrize(
    "key, text, sentence",
    [
        ("train__batch_size", "2026-02-30", "train.batch_size is '2026-02-30'; it must be a whole number"),
        ("train__batch_size", '!!int "abc"', "line 3: not valid YAML: 'abc' is not a number"),
        ("train__batch_size", "9" * 5000, "not valid YAML: a number with more than 40 digits"),
        ("train__batch_size", "[" * 1500 + "]" * 1500, "not valid YAML: values are nested more than 30 deep"),
        ("train__batch_size", "010", "train.batch_size is '010'; it must be a whole number"),
        ("train__batch_size", "1:30:20", "train.batch_size is '1:30:20'; it must be a whole number"),
        ("train__batch_size", "4\n  batch_size: 8", "line 4: not valid YAML: the key 'batch_size' occurs twice"),
        ("train__batch_size", "x" * 1_000_000, "x...'; it must be a whole number"),
        ("train__save_total_limit", "1000000000000", "is 1000000000000; it must be at most 2147483647"),
        ("exp__seeds", "[4294967296]", "exp.seeds is [4294967296]; seeds must be 0 or greater"),
        ("data__train_csv", '"a\\0.csv"', r"data.train_csv is 'a\x00.csv', which has a character that is no text"),
        ("data__train_csv", '"\\ud800"', "not valid YAML"),
    ],
)  # fmt: skip
def test_what_was_a_traceback_or_another_value_is_a_sentence(
    write_recipe, tmp_path: Path, capsys, key: str, text: str, sentence: str
) -> None:
    section, _, name = key.partition("__")
    path = write_recipe(**{key: None})
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    del values[section][name]
    rest = {other: values.pop(other) for other in list(values)}
    inner = "".join(f"  {k}: {json.dumps(v)}\n" for k, v in rest.pop(section).items())
    path.write_text(f"# a recipe\n{section}:\n  {name}: {text}\n{inner}{yaml.safe_dump(rest)}", encoding="utf-8")
    found = refusal(capsys, "folder", path)
    assert sentence in found
    assert len(found) < 300


def test_a_text_is_taken_as_it_was_written(write_recipe, tmp_path: Path) -> None:
    path = write_recipe(data__label_columns="LABELS", data__dataset_name="NAME")
    text = path.read_text(encoding="utf-8").replace("LABELS", "[010, 1.10, 2026-02-03, 1:30]").replace("NAME", "1.10")
    path.write_text(text, encoding="utf-8")
    recipe = load_recipe(path)
    assert recipe.data.label_columns == ["010", "1.10", "2026-02-03", "1:30"]
    assert recipe.data.dataset_name == "1.10"
    copy = tmp_path / "copy.yaml"
    copy.write_text(recipe_to_yaml(recipe), encoding="utf-8")
    assert load_recipe(copy).data == recipe.data


def test_thousands_of_labels_load(write_recipe) -> None:
    names = [f"label {i}" for i in range(13_000)]
    recipe = load_recipe(write_recipe(data__label_columns=names, data__label_descriptions=dict.fromkeys(names, "x")))
    assert recipe.data.label_columns == names


def test_the_saved_copy_reads_back_the_same_and_contains_no_token(write_recipe, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(model__hf_token="hf_secret"))
    text = recipe_to_yaml(recipe)
    assert "hf_secret" not in text
    assert "hf_secret" not in repr(recipe)
    assert recipe_to_dict(recipe)["model"]["hf_token"] is None
    copy = tmp_path / "copy.yaml"
    copy.write_text(text, encoding="utf-8")
    assert recipe_to_yaml(load_recipe(copy)) == text


@pytest.mark.parametrize(
    "override, sentence",
    [
        ("model.hf_token=[hf_secret]", "model.hf_token must be text"),
        ("hf_token=[hf_secret", "the value of model.hf_token is not valid YAML"),
        ("hf_token: hf_secret", "is not an override"),
        ("hf_tokn=hf_secret", "hf_tokn is not a recipe key"),
    ],
)
def test_no_error_shows_a_token(write_recipe, capsys, override: str, sentence: str) -> None:
    found = refusal(capsys, "folder", write_recipe(), override)
    assert sentence in found
    assert "hf_secret" not in found


def test_no_error_about_a_section_shows_what_is_in_it(tmp_path: Path, capsys) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: [hf_token, hf_secret]", encoding="utf-8")
    assert "hf_secret" not in refusal(capsys, "folder", path)


def test_a_token_on_the_command_line_is_hidden_and_warned_about(write_recipe, monkeypatch, log_lines) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "model.hf_token=hf_secret", "exp.seeds=[1]"])
    assert load_recipe(write_recipe(), sys.argv[1:]).model.hf_token == "hf_secret"
    assert sys.argv == ["train", "model.hf_token=***", "exp.seeds=[1]"]
    assert [line for line in log_lines if "set HF_TOKEN instead" in line]


def test_a_token_can_be_taken_out_of_a_recipe_without_a_warning(write_recipe, log_lines) -> None:
    assert load_recipe(write_recipe(model__hf_token="hf_secret"), ["model.hf_token=null"]).model.hf_token is None
    assert log_lines == []


def test_a_relative_file_is_looked_for_in_the_working_folder_and_then_beside_the_recipe(
    write_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    recipe = write_recipe(data__train_csv="sets/train.csv", data__val_csv="v.csv", data__test_csv="nowhere.csv")
    (recipe.parent / "sets").mkdir()
    (recipe.parent / "sets" / "train.csv").touch()
    for folder in (here, recipe.parent):
        (folder / "v.csv").touch()
    data = load_recipe(recipe).data
    assert data.train_csv == str(recipe.parent / "sets" / "train.csv")
    assert (data.val_csv, data.test_csv) == ("v.csv", "nowhere.csv")
    monkeypatch.chdir(recipe.parent)
    assert load_recipe("recipe.yaml").data.train_csv == "sets/train.csv"
