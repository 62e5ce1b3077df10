"""A user's mistakes: each is one clear sentence on stderr and exit code 2, without a traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmcls.common.command import run_command
from tests.helpers import read_rows, write_csv

pytestmark = pytest.mark.slow

Change = dict[str, Any]

IN_THE_RECIPE: list[tuple[Change, str]] = [
    ({"train__learning_rte": 1e-4}, "recipe.yaml: train.learning_rte is not a key; did you mean learning_rate?"),
    ({"train__batch_size": "many"}, "recipe.yaml: train.batch_size is 'many'; it must be a whole number"),
    ({"train__batch_size": 0}, "train.batch_size is 0; it must be at least 1"),
    ({"train__learning_rate": -1}, "train.learning_rate is -1.0; it must be above 0"),
    ({"train__lr_scheduler_type": "cosin"}, "must be one of cosine, linear, constant; did you mean cosine?"),
    ({"train__report_to": ["wandbb"]}, "train.report_to is 'wandbb'; it must be one of tensorboard, wandb"),
    ({"train__metric_for_best_model": "f1_mikro"}, "f1_mikro', which is not a metric; did you mean f1_micro?"),
    ({"model__torch_dtype": "bf16"}, "model.torch_dtype is 'bf16'; it must be one of float32, bfloat16, float16"),
    ({"model__use_4bit": True, "model__lora_r": 0}, "4-bit weights cannot be trained"),
    ({"model__lora_dropout": 1.0}, "model.lora_dropout is 1.0; it must be from 0 to below 1"),
    ({"model__problem_type": "multilabel"}, "did you mean multi_label_classification?"),
    ({"data__label_columns": []}, "data.label_columns is empty"),
    ({"data__label_columns": ["books", "books"]}, "data.label_columns names books twice"),
    ({"data__label_columns": ["books", True]}, "data.label_columns[1] is True; it must be text (put it in quotes)"),
    ({"data__label_columns": ["title"]}, "names 'title', which is also the id or a text column"),
    ({"data__text_fields": None}, "data.text_fields and data.target_text_column are both empty"),
    ({"data__val_csv": None, "train__early_stopping_patience": 2}, "needs data.val_csv"),
    ({"data__train_csv": None}, "data.train_csv is missing; it must be text"),
    ({"model__problem_type": "binary_classification"}, "names 10 columns; binary_classification needs exactly one"),
    ({"exp__seeds": [1, 1]}, "exp.seeds is [1, 1]; seeds must be 0 or greater and different"),
    ({"exp__run_name": "a/b"}, "exp.run_name is 'a/b'; use letters"),
    ({"data__train_csv": "nowhere/train.csv"}, "nowhere/train.csv does not exist"),
    ({"data__text_fields": ["titel"]}, "has no column 'titel' (data.text_fields); did you mean 'title'?"),
    ({"data__id_column": "id"}, "has no column 'id' (data.id_column); did you mean 'uid'?"),
    ({"data__label_columns": ["book"]}, "has no column 'book' (data.label_columns); did you mean 'books'?"),
    ({"model__model_name": "nobody/nothing-1B"}, "'nobody/nothing-1B' is not a local folder, not in the cache"),
    ({"model__lora_target_modules": ["query"]}, "names 'query', which"),
]

ON_THE_COMMAND_LINE: list[tuple[list[str], str]] = [
    (["train.lr=1"], "command line: train.lr is not a key"),
    (["trian.batch_size=1"], "command line: trian is not a section of a recipe; did you mean train?"),
    (["batch_size"], "'batch_size' is not an override; write section.key=value"),
    (["exp.seeds=[1"], "the value of exp.seeds is not valid YAML"),
]


def edit(column: str, row: int, value: str) -> Callable[[list[dict[str, str]]], None]:
    def change(rows: list[dict[str, str]]) -> None:
        rows[row - 1][column] = value

    return change


IN_THE_TABLE: list[tuple[Callable[[list[dict[str, str]]], None], str]] = [
    (edit("music", 3, "2"), "row 3, column 'music': '2' is not 0 or 1"),
    (edit("toys", 1, ""), "row 1, column 'toys': '' is not 0 or 1"),
    (edit("uid", 5, "P21000001"), "column 'uid': id 'P21000001' occurs in rows 2 and 5"),
    (lambda rows: rows.clear(), "has no rows; add at least one"),
]

BROKEN_FILES: list[tuple[bytes, str]] = [
    (b"", "is empty; its first line must name the columns"),
    (b"uid,title,title\n1,a,b\n", "has the column 'title' twice"),
    (b"uid,title,description,books\n1,a,b,1,0\n", "row 1 (line 2) has 5 cells, the header has 4"),
    (b"uid,title,description,books\n1,a,b\n", "row 1 (line 2) has 3 cells, the header has 4"),
    (b"uid,title,description,books\n1,\x81\x8d,b,1\n", "is not UTF-8"),
]


def refused(capsys: pytest.CaptureFixture[str], recipe: Path, overrides: list[str] | None = None) -> str:
    """The one sentence training stops with."""
    from llmcls.train import main

    with pytest.raises(SystemExit) as stop:
        run_command(lambda: main([str(recipe), *(overrides or [])]))
    assert stop.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    return said[0]


@pytest.mark.parametrize("change, sentence", IN_THE_RECIPE, ids=lambda v: str(v)[:50])
def test_a_mistake_in_the_recipe(write_recipe, capsys, change: Change, sentence: str) -> None:
    assert sentence in refused(capsys, write_recipe(**change))


@pytest.mark.parametrize("overrides, sentence", ON_THE_COMMAND_LINE, ids=lambda v: str(v)[:50])
def test_a_mistake_on_the_command_line(write_recipe, capsys, overrides: list[str], sentence: str) -> None:
    assert sentence in refused(capsys, write_recipe(), overrides)


@pytest.mark.parametrize("change, sentence", IN_THE_TABLE, ids=[sentence[:50] for _, sentence in IN_THE_TABLE])
def test_a_mistake_in_a_table(write_recipe, products, tmp_path, capsys, change: Any, sentence: str) -> None:
    rows = read_rows(products / "train.csv")
    header = rows[0].copy()
    change(rows)
    path = write_csv(tmp_path / "train.csv", rows or [header])
    if not rows:
        path.write_text(",".join(header) + "\n", encoding="utf-8")
    said = refused(capsys, write_recipe(data__train_csv=str(path)))
    assert sentence in said
    assert str(path) in said


@pytest.mark.parametrize("content, sentence", BROKEN_FILES, ids=lambda v: str(v)[:50])
def test_a_broken_file(write_recipe, tmp_path, capsys, content: bytes, sentence: str) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(content)
    said = refused(capsys, write_recipe(data__train_csv=str(path), data__label_columns=["books"]))
    assert sentence in said
    assert str(path) in said


def test_a_recipe_that_is_not_there_or_not_yaml(tmp_path: Path, capsys) -> None:
    assert "no such recipe file" in refused(capsys, tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("data: {a: [1\nmodel: 3", encoding="utf-8")
    assert f"{broken}, line 2: not valid YAML" in refused(capsys, broken)
    broken.write_text("just text", encoding="utf-8")
    assert "a recipe needs the sections data, model, train, exp" in refused(capsys, broken)
    broken.write_text("dat: {}", encoding="utf-8")
    assert "dat is not a section of a recipe; did you mean data?" in refused(capsys, broken)


def test_a_damaged_weights_file(write_recipe, tiny_llama: Path, tmp_path: Path, capsys) -> None:
    import shutil

    folder = tmp_path / "damaged"
    shutil.copytree(tiny_llama, folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "damaged" in refused(capsys, write_recipe(model__model_name=str(folder)))


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--run", "nowhere", "--input", "a.csv", "--output", "b"], "nowhere is not a run folder"),
        (["--run", "nowhere", "--input", "a.csv", "--output", "b", "x.y=1"], "overrides need --recipe"),
    ],
)
def test_a_mistake_in_prediction(arguments: list[str], sentence: str, capsys) -> None:
    from llmcls.predict import main

    with pytest.raises(SystemExit) as stop:
        run_command(lambda: main(arguments))
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err
