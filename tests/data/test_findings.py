from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from llmcls.data.splits import text_digest
from llmcls.recipe.load import load_recipe
from llmcls.training.inputs import load_inputs
from tests.helpers import read_rows, write_csv


def warned(log_lines: list[str], recipe: Path) -> str:
    from accelerate import PartialState

    log_lines.clear()
    load_inputs(load_recipe(recipe), PartialState(cpu=True))
    return "\n".join(log_lines)


def edited(products: Path, path: Path, *changes: tuple[int, dict[str, Any]]) -> str:
    """The training file with changes of rows, by their number."""
    rows = read_rows(products / "train.csv")
    for number, change in changes:
        rows[number - 1] |= change
    return str(write_csv(path, rows))


def test_empty_texts_and_contradictions_are_said_with_their_rows(
    write_recipe, products: Path, tmp_path: Path, log_lines: list[str]
) -> None:
    nothing = {"title": " ", "description": ""}
    first = read_rows(products / "train.csv")[0]
    same = {"title": first["title"].upper(), "description": first["description"] + " "}
    other = same | {"books": str(1 - int(first["books"]))}
    path = edited(products, tmp_path / "t.csv", (4, nothing), (9, nothing), (12, same), (13, other))
    said = warned(log_lines, write_recipe(data__train_csv=path))
    assert f"{path}: 2 of 160 texts are empty, so their labels come from nothing (rows 4, 9)" in said
    assert "2 of 160 texts occur earlier in the file (rows 12, 13)" in said
    assert "texts are also there with other labels (row" in said


def test_rows_without_a_label_are_counted(write_recipe, products: Path, log_lines: list[str]) -> None:
    bare = [
        number
        for number, row in enumerate(read_rows(products / "validation.csv"), 1)
        if "1" not in list(row.values())[3:]
    ]
    said = warned(log_lines, write_recipe())
    assert f"validation.csv: {len(bare)} of 40 rows have no label (row" in said


def test_validation_that_is_in_training_is_said(write_recipe, products: Path, log_lines: list[str]) -> None:
    said = warned(log_lines, write_recipe(data__val_csv=str(products / "train.csv")))
    assert "160 of 160 texts of validation are training texts too (rows 1, 2, 3 and 157 more); its metrics show" in said
    assert "texts of test are training texts" not in said


def test_held_out_rows_are_named_by_their_numbers_in_the_file(
    write_recipe, products: Path, tmp_path: Path, log_lines: list[str]
) -> None:
    path = edited(products, tmp_path / "t.csv", *((n, {"title": "", "description": ""}) for n in (70, 140)))
    said = warned(log_lines, write_recipe(data__train_csv=path, data__val_csv=None, data__validation_split=0.5))
    named = re.findall(r"texts are empty, .*\(rows? ([\d, ]+)\)", said)
    assert sorted(", ".join(named).split(", ")) == ["140", "70"]


def test_case_and_spaces_make_no_other_text() -> None:
    assert text_digest("A  b\n") == text_digest("a b") != text_digest("ab")
    assert text_digest("\n\t ") == 0
