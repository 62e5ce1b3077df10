from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from accelerate import PartialState

from llmcls.data.splits import some_rows
from llmcls.recipe.load import load_recipe
from llmcls.training import data_preview as module
from llmcls.training.data_preview import data_preview, data_problems
from llmcls.training.inputs import Inputs, load_inputs
from tests.helpers import TOPICS, read_rows, write_csv


@pytest.fixture
def inputs(write_recipe):
    def of(*overrides: str, **changes) -> tuple[list[str], Inputs]:
        recipe = load_recipe(write_recipe(**changes), list(overrides))
        loaded = load_inputs(recipe, PartialState(cpu=True))
        return data_preview(recipe, loaded), loaded

    return of


def test_labels_are_counted_in_each_split_most_frequent_first(inputs, products: Path) -> None:
    said, _ = inputs()
    header = next(i for i, line in enumerate(said) if line.split() == ["label", "train", "validation", "test"])
    table = [line.split() for line in said[header + 1 : header + 1 + len(TOPICS)]]
    counts = {
        name: [
            sum(row[name] == "1" for row in read_rows(products / f"{split}.csv"))
            for split in ("train", "validation", "test")
        ]
        for name in TOPICS
    }
    assert {row[0]: [int(cell) for cell in row[1:]] for row in table} == counts
    assert [int(row[1]) for row in table] == sorted((c[0] for c in counts.values()), reverse=True)
    assert said[header + 1 + len(TOPICS)].split() == ["rows", "160", "40", "61"]


def test_lengths_are_those_before_the_cut(inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    said, loaded = inputs("max_length=16")
    assert loaded.train_split.lengths.max() == 16
    start = next(i for i, line in enumerate(said) if line.startswith("lengths of the training texts in tokens"))
    longest = int(said[start].rpartition(" ")[2].replace(",", ""))
    assert longest > 64
    bins = [line.split() for line in said[start + 1 : -1]]
    assert sum(int(row[3]) for row in bins) == 160
    assert said[-1].startswith("data.max_length=16 cuts ")
    assert inputs("max_length=4096")[0][-1] == "data.max_length=4096 cuts no text"
    monkeypatch.setattr(module, "SAMPLED_CHARACTERS", 1)
    assert any(line.startswith("lengths of 1 training texts") for line in inputs()[0]), "the texts are very long"


def test_labels_that_come_together_and_those_that_need_a_look_are_named(inputs, products: Path, tmp_path: Path) -> None:
    rows = read_rows(products / "train.csv")
    for number, row in enumerate(rows):
        row |= {"pets": row["books"], "vintage": str(int(number < 3))}
    path = write_csv(tmp_path / "t.csv", rows)
    said, loaded = inputs(data__train_csv=str(path))
    count = sum(row["books"] == "1" for row in rows)
    assert f"pets with books (100% of {count} rows)" in next(line for line in said if "come together" in line)
    assert data_problems(loaded) == ["labels with fewer than 10 training rows: vintage"]


def test_names_that_differ_in_writing_and_many_labels_are_shown_shortly(inputs, products: Path, tmp_path: Path) -> None:
    names = ["Top up", "top_up", *(f"class {i}" for i in range(40))]
    rows = [
        row | {"kind": name} for row, name in zip(read_rows(products / "train.csv"), np.resize(names, 160), strict=True)
    ]
    path = write_csv(tmp_path / "t.csv", rows)
    said, loaded = inputs(
        data__train_csv=str(path), data__val_csv=None, data__test_csv=None, data__label_columns=["kind"],
        model__problem_type="single_label_classification",
    )  # fmt: skip
    assert "  ... 18 more labels ..." in said
    assert len([line for line in said if "class " in line]) < 26
    assert "labels that differ only in writing: 'Top up' and 'top_up'" in data_problems(loaded)
    few = replace(loaded, train_split=some_rows(loaded.train_split, 60, seed=0))
    assert "42 classes in 60 training rows: is 'kind' the column of the class?" in data_problems(few)
