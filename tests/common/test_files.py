from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from llmcls.common.files import (
    current_folder,
    read_json,
    remove_partials,
    replacing,
    replacing_folder,
    write_json,
    write_text,
)
from llmcls.common.user_error import UserError
from tests.helpers import ROOT


def fail(path: Path) -> None:
    """Write something to a path, then fail."""
    path.write_text("half of the n")
    raise ZeroDivisionError


def fill(context: AbstractContextManager[Path], error: Exception) -> None:
    """Write something, and meet an error."""
    with context as path:
        (path / "part" if path.is_dir() else path).write_text("half of it")
        raise error


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


def test_json_that_is_damaged_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content in (b"", b"{", b"\xff", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.json is damaged: it is not JSON"):
            read_json(path)


def test_the_folder_before_stays_under_another_name(tmp_path: Path) -> None:
    last, previous = tmp_path / "last", tmp_path / "previous"
    for i in range(4):
        with replacing_folder(last, previous) as temporary:
            (temporary / str(i)).touch()
            # The disk holds two of them at most.
            assert names(tmp_path) == (["last", "last.partial"] if i else ["last.partial"])
        assert names(last) == [str(i)]
    assert names(previous) == ["2"]
    assert names(tmp_path) == ["last", "previous"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the name of an open file is read there")
def test_content_reaches_the_disk_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    sync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        steps.append(f"sync {Path(os.readlink(f'/proc/self/fd/{handle}')).name.split('.')[0]}")
        sync(handle)

    def replaced(source: Path, target: Path) -> None:
        steps.append(f"name {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    folder = tmp_path / "folder"
    write_text(folder / "a.txt", "content")
    assert steps == ["sync a", "name a.txt", "sync folder"]
    steps.clear()
    with replacing_folder(folder / "last") as temporary:
        (temporary / "weights").touch()
    assert steps == ["sync weights", "sync last", "name last", "sync folder"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        # What safetensors raises, which is no OSError.
        ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
    ],
    ids=["system", "library", "quota"],
)
def test_a_full_disk_is_one_sentence_and_leaves_no_part(tmp_path: Path, error: Exception) -> None:
    for path, writing in ((tmp_path / "a.txt", replacing), (tmp_path / "last", replacing_folder)):
        with pytest.raises(UserError, match=rf"{path.name}: (the disk is full|your quota is used up); free some space"):
            fill(writing(path), error)
    assert names(tmp_path) == []


def test_torch_does_not_say_that_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")
    with pytest.raises(RuntimeError, match="PytorchStreamWriter"):
        fill(replacing_folder(tmp_path / "last"), error)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 4096))
    with pytest.raises(UserError, match="last: the disk is full"):
        fill(replacing_folder(tmp_path / "last"), error)


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in ("a.json.123.partial", "b.json.7.partial", "a.json", "a.json.partial", "a.jsonl.partial"):
        (tmp_path / name).write_text("")
    (tmp_path / "last.partial").mkdir()
    (tmp_path / "last.partial" / "weights").write_text("")
    remove_partials(tmp_path, "a.")
    assert {path.name for path in tmp_path.iterdir()} == {
        "b.json.7.partial", "a.json", "a.json.partial", "a.jsonl.partial", "last.partial"
    }  # fmt: skip
    remove_partials(tmp_path, folders=True)
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "a.json.partial", "a.jsonl.partial"}
