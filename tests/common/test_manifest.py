from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llmcls.common.files import write_json
from llmcls.common.manifest import MANIFEST, damage, entry_of, entry_of_content, write_manifest

CONTENT = bytes(range(256)) * 40


def flip(share: float) -> Callable[[Path], None]:
    """Change one bit, at a share of the file."""

    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(share * (len(content) - 1))] ^= 4
        path.write_bytes(content)

    return change


# What a disk, a copy that was cut short, or a hand can do to a file.
DAMAGES: dict[str, Callable[[Path], None]] = {
    "head": flip(0),
    "middle": flip(0.5),
    "tail": flip(1),
    "cut": lambda path: os.truncate(path, path.stat().st_size - 2),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: os.truncate(path, path.stat().st_size + 1),
    "gone": lambda path: path.unlink(),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    for name in ("a.bin", "model/b.bin"):
        (tmp_path / name).write_bytes(CONTENT)
    write_manifest(tmp_path, [tmp_path / "a.bin", tmp_path / "model" / "b.bin"])
    return tmp_path


def test_files_as_they_were_written_are_whole(folder: Path) -> None:
    assert damage(folder) is None
    assert damage(folder, ["a.bin", "not there"]) is None


@pytest.mark.parametrize("change", DAMAGES.values(), ids=DAMAGES.keys())
@pytest.mark.parametrize("name", ["a.bin", "model/b.bin"])
def test_every_damage_is_found_and_the_file_is_named(folder: Path, name: str, change: Callable[[Path], None]) -> None:
    change(folder / name)
    assert str(damage(folder)).startswith(f"{name} ")
    assert damage(folder, ["a.bin" if name != "a.bin" else "model/b.bin"]) is None


@pytest.mark.parametrize("change", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_manifest_is_found_too(folder: Path, change: Callable[[Path], None]) -> None:
    change(folder / MANIFEST)
    assert damage(folder) is not None


def test_no_bit_of_a_manifest_changes_what_counts_as_whole(folder: Path) -> None:
    content = (folder / MANIFEST).read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 4
        (folder / MANIFEST).write_bytes(changed)
        assert damage(folder, ["a.bin", "model/b.bin"]) is not None, place


@pytest.mark.parametrize("value", [[], {}, {"files": []}, {"files": {"a.bin": 3}}])
def test_a_manifest_that_lists_no_files_is_damaged(folder: Path, value: object) -> None:
    write_json(folder / MANIFEST, value)
    assert "manifest.json is damaged" in str(damage(folder))


def test_a_file_that_was_added_is_named_if_it_matters(folder: Path) -> None:
    (folder / "c.bin").write_bytes(b"")
    assert damage(folder) is None
    assert damage(folder, ["c.bin"]) == "c.bin is not in manifest.json"


def test_content_and_file_have_the_same_entry(folder: Path) -> None:
    assert entry_of(folder / "a.bin") == entry_of_content(CONTENT)
