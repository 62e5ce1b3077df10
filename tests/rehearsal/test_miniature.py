from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoConfig

from llmcls.data.tables import read_table
from llmcls.recipe.load import load_recipe
from llmcls.rehearsal.miniature import ROWS, make_miniature
from tests.helpers import TOPICS, read_rows, write_csv


def test_the_miniature_keeps_names_groups_and_files(write_recipe, tmp_path: Path, products: Path) -> None:
    recipe = load_recipe(write_recipe())
    mini = make_miniature(recipe, tmp_path / "mini", steps=4)
    assert mini.stand_ins == []
    again = load_recipe(mini.path)
    assert again.model.lora_target_modules == ["q_proj", "v_proj"]
    real, small = (
        AutoConfig.from_pretrained(recipe.model.model_name),
        AutoConfig.from_pretrained(again.model.model_name),
    )
    assert small.model_type == real.model_type
    assert small.hidden_size < real.hidden_size
    # The tiny Llama has six query heads on two key heads; the miniature's are grouped too.
    assert small.num_key_value_heads < small.num_attention_heads
    known = {row["uid"]: row["title"] for row in read_rows(products / "train.csv")}
    sample = read_rows(Path(again.data.train_csv))
    assert len(sample) == ROWS["train"]
    assert all(known[row["uid"]] == row["title"] for row in sample)


def test_the_miniature_has_every_label_of_a_delimited_column(write_recipe, tmp_path: Path) -> None:
    rows = [{"uid": str(i), "text": f"text {i}", "tags": f"a|l{i % 150}"} for i in range(600)]
    path = write_csv(tmp_path / "tags.csv", rows)
    recipe = load_recipe(
        write_recipe(
            data__train_csv=str(path),
            data__val_csv=str(path),
            data__test_csv=None,
            data__text_fields=["text"],
            data__label_columns=["tags"],
            data__label_separator="|",
            model__lora_layers=[1],
        )
    )
    mini = make_miniature(recipe, tmp_path / "mini", steps=2)
    tags = {tag for row in read_rows(Path(mini.recipe.data.train_csv)) for tag in row["tags"].split("|")}
    assert len(tags) == 151
    assert mini.recipe.model.lora_layers == [-1]


@pytest.mark.parametrize(
    "changes, targets",
    [
        ({"model__model_name": "nobody/Llama-3B"}, ["q_proj", "v_proj"]),
        ({"model__model_name": "nobody/bert", "model__lora_target_modules": ["query", "dense"]}, ["query", "dense"]),
        ({"model__model_name": "nobody/odd", "model__lora_target_modules": ["Wqkv"]}, ["all-linear"]),
    ],
)
def test_what_is_out_of_reach_is_stood_in_for_and_said(write_recipe, tmp_path: Path, changes, targets) -> None:
    recipe = load_recipe(write_recipe(data__train_csv="not/there.csv", **changes))
    mini = make_miniature(recipe, tmp_path / "mini", steps=2)
    assert mini.recipe.model.lora_target_modules == targets
    assert "generated rows replace not/there.csv" in mini.stand_ins[0]
    assert f"replaces {recipe.model.model_name}, which cannot be loaded" in mini.stand_ins[1]
    table = read_table(mini.recipe.data.train_csv)
    assert table.column_names == ["uid", "title", "description", *TOPICS]


def test_every_class_is_in_the_sample(write_recipe, tmp_path: Path) -> None:
    names = [*(f"c{i % 3}" for i in range(400)), "rare"]
    rows = [{"uid": i, "title": f"text {i}", "kind": name} for i, name in enumerate(names)]
    path = str(write_csv(tmp_path / "classes.csv", rows))
    recipe = load_recipe(
        write_recipe(
            data__train_csv=path,
            data__val_csv=path,
            data__test_csv=path,
            data__text_fields=["title"],
            data__label_columns=["kind"],
            model__problem_type="single_label_classification",
        )
    )
    mini = make_miniature(recipe, tmp_path / "mini", steps=2)
    assert {row["kind"] for row in read_rows(Path(mini.recipe.data.train_csv))} == {"c0", "c1", "c2", "rare"}
