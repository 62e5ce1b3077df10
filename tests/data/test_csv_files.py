from __future__ import annotations

from pathlib import Path

import pytest

from llmcls.data.csv_files import check_rows, find_format
from llmcls.recipe.schema import DataSection


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize(
    "text, separator, header",
    [
        ("id;text\n1;a, b, c\n2;d, e, f\n", ";", ("id", "text")),
        ("id,text\n1,a; b; c\n2,d; e; f\n", ",", ("id", "text")),
        ("text, long;label\na;b\nc;d\n", ";", ("text, long", "label")),
        ('text\tlabel|x\n"a\tb|c"\td\n', "\t", ("text", "label|x")),
        ("text\na; b\n", ",", ("text",)),
        ("a,b,c\n1,2\n", ",", ("a", "b", "c")),
    ],
)
def test_the_separator_gives_all_rows_the_cells_of_the_header(tmp_path: Path, text, separator, header) -> None:
    form = find_format(written(tmp_path, text), "data.train_csv")
    assert (form.separator, form.header) == (separator, header)


def test_a_separator_of_the_recipe_is_taken_where_the_first_rows_tell_another(tmp_path: Path) -> None:
    path = written(tmp_path, "a,b;c\n1,2;3\n")
    data = DataSection("name", str(path), ["c"], csv_separator=";")
    assert find_format(path, "data.train_csv", data).header == ("a,b", "c")
    assert find_format(path, "data.train_csv").header == ("a", "b;c")


def test_a_table_for_prediction_may_have_another_separator_than_the_recipe(tmp_path: Path) -> None:
    path = written(tmp_path, "a,b\n1,2\n")
    data = DataSection("name", str(path), ["c"], csv_separator="tab")
    assert find_format(path, "--input", data, insist=False).header == ("a", "b")


def test_empty_rows_count_unless_they_are_at_the_end(tmp_path: Path) -> None:
    path = written(tmp_path, "a,b\n1,2\n,\n3,4\n,\n\n,\n")
    assert check_rows(path, find_format(path, ""), "") == 3
