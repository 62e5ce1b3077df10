from __future__ import annotations

from dataclasses import fields

from llmcls.common.user_error import UserError
from llmcls.recipe.load import load_recipe
from llmcls.recipe.schema import SECTIONS, DataSection, ExpSection, TrainSection


def test_every_key_is_documented_in_the_schema() -> None:
    undocumented = [f.name for kind in SECTIONS.values() for f in fields(kind) if not f.metadata.get("doc")]
    assert undocumented == []


def test_a_key_is_in_one_section_only_so_that_overrides_need_no_section() -> None:
    keys = [f.name for kind in SECTIONS.values() for f in fields(kind)]
    assert len(keys) == len(set(keys))


def test_files_are_those_of_the_named_splits() -> None:
    data = DataSection("d", "train.csv", ["a"], test_csv="test.csv")
    assert data.files() == {"train": "train.csv", "test": "test.csv"}
    data.val_csv = "validation.csv"
    assert list(data.files()) == ["train", "validation", "test"]


def test_text_columns_are_the_text_fields_or_the_one_column() -> None:
    assert DataSection("d", "t", ["a"], text_fields=["title", "body"]).text_columns() == ["title", "body"]
    assert DataSection("d", "t", ["a"], target_text_column="text").text_columns() == ["text"]


def test_defaults_are_not_shared_between_recipes() -> None:
    first, second = ExpSection(), ExpSection()
    first.seeds.append(2)
    assert second.seeds == [1]
    TrainSection().report_to.clear()
    assert TrainSection().report_to == ["tensorboard"]


def test_an_error_names_the_file_and_the_key(write_recipe) -> None:
    path = write_recipe()
    error = load_recipe(path).error("train.batch_size", "is 0; it must be at least 1")
    assert isinstance(error, UserError)
    assert str(error) == f"{path}: train.batch_size is 0; it must be at least 1"
