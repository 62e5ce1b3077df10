from __future__ import annotations

import os
import platform
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from llmcls.diagnosis import machine
from tests.diagnosis.helpers import find

Usage = namedtuple("Usage", "total used free")


def test_system_memory_and_files_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    system = find("system", tmp_path)
    assert system.status == "ok"
    assert f"Python {platform.python_version()}" in system.found
    assert find("memory", tmp_path).details["main_gib"] > 0.5
    files = find("files", tmp_path)
    assert files.status == "ok"
    assert "atomic rename and fsync work" in files.found
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("free, status", [(0.5, "fault"), (5, "warning"), (50, "ok")])
def test_a_full_disk_is_found(free: float, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1e12, 0, free * 2**30))
    found = find("disk", tmp_path)
    assert found.status == status
    assert f"{free:.1f} GiB free for results" in found.found
    assert ("HF_HOME" in found.advice) == (status != "ok")


def test_gpus_that_others_use_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_gpu_memory", lambda: [(79.0, 80.0), (20.0, 80.0)])
    found = find("memory", tmp_path)
    assert found.status == "warning"
    assert "GPU 1: 80.0 GiB (20.0 free)" in found.found
    assert found.advice.startswith("other programs use GPU 1;")


def test_a_file_system_that_does_not_sync_or_rename_is_a_fault(
    write_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(descriptor: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "fsync", refuses)
    found = find("files", tmp_path, write_recipe())
    assert found.status == "fault"
    assert found.found == f"{tmp_path}: Operation not supported"
    assert "set exp.output_root to another one" in found.advice


def test_the_nearest_folder_above_is_looked_at(tmp_path: Path) -> None:
    assert machine.existing(tmp_path / "a" / "b") == tmp_path
