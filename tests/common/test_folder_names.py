from __future__ import annotations

from pathlib import Path

import pytest

from llmcls.common.folder_names import folder_name_problem

ESCAPES = [
    "",
    ".",
    "..",
    "/",
    "/abs/path",
    "a/b",
    "../x",
    "..\\x",
    "a\nb",
    "a\x00",
    "\u2028",
    "\ud800",
    "a.",
    "a ",
    "é" * 101,
]


@pytest.mark.parametrize("name", ESCAPES, ids=ascii)
def test_a_name_that_would_leave_its_folder_or_cannot_be_a_name_is_refused(name: str) -> None:
    assert folder_name_problem(name)


@pytest.mark.parametrize(
    "name", ["amazon_13k", "imdb v2", "Zürich", "batch_size-4_lr-1e-4", ".hidden", "a..b", "x" * 200]
)
def test_other_names_make_a_folder_in_their_folder(tmp_path: Path, name: str) -> None:
    assert folder_name_problem(name) is None
    (tmp_path / name).mkdir()
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["C:x", "a:b", "what?", "NUL", "com1.txt", "con .x"])
def test_windows_refuses_more(name: str) -> None:
    assert folder_name_problem(name, windows=True) == "is a name that Windows does not allow"
    assert folder_name_problem(name, windows=False) is None
