from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmcls.common.files import current_folder, read_json, replacing, replacing_folder, write_json, write_text
from tests.helpers import ROOT


def fail(path: Path) -> None:
    """Write something to a path, then fail."""
    path.write_text("half of the n")
    raise ZeroDivisionError


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    for content in ("first", "second"):
        with replacing(path) as temporary:
            temporary.write_text(content)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == content
    assert names(path.parent) == ["a.txt"]


def test_an_exception_inside_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        fail(temporary)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    code = (
        "import os, pathlib, sys; from llmcls.common.files import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half of the n'); os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], cwd=ROOT)
    assert done.returncode == 9
    assert path.read_text() == "old"


def test_text_has_the_same_bytes_on_every_system(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "Zürich\nBern\n")
    assert (tmp_path / "a.txt").read_bytes() == "Zürich\nBern\n".encode()


def test_json_is_read_back_and_legible(tmp_path: Path) -> None:
    value = {"name": "Größe", "values": [1, 2.5, None, True]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert '\n  "name": "Größe"' in (tmp_path / "a.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_json_that_other_programs_cannot_read_is_refused_and_the_old_file_stays(tmp_path: Path, number: float) -> None:
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", [number])
    assert read_json(tmp_path / "a.json") == 1
    assert names(tmp_path) == ["a.json"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "best"
    for name in ("first", "second"):
        with replacing_folder(folder) as temporary:
            (temporary / name).touch()
        assert names(folder) == [name]
        assert current_folder(folder) == folder
    assert names(tmp_path) == ["best"]


def test_an_exception_inside_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "best"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(ZeroDivisionError), replacing_folder(folder) as temporary:
        fail(temporary / "new")
    assert current_folder(folder) == folder
    assert names(folder) == ["old"]
    assert names(tmp_path) == ["best"]
    with replacing_folder(folder) as temporary:
        (temporary / "newest").touch()
    assert names(folder) == ["newest"]


def test_a_swap_that_was_interrupted_loses_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "best"
    folder.mkdir()
    (folder / "old").touch()
    real, calls = os.replace, []

    def dying(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(KeyboardInterrupt), replacing_folder(folder) as temporary:
        (temporary / "new").touch()
    found = current_folder(folder)
    assert found is not None
    assert names(found) == ["old"]


def test_a_folder_that_was_never_written_is_none(tmp_path: Path) -> None:
    assert current_folder(tmp_path / "best") is None
