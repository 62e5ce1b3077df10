from __future__ import annotations

import importlib.util
import platform
from pathlib import Path

import pytest

from llmcls.diagnosis import software
from tests.diagnosis.helpers import find


def test_the_compiler_of_the_environment_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert software.find_compiler("cpu") is None
    for name in ("g++", "my-compiler"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    assert software.find_compiler("cpu") == "g++"
    monkeypatch.setenv("CXX", "my-compiler -O3")
    assert software.find_compiler("cpu") == "my-compiler -O3"


@pytest.mark.parametrize("system, status", [("Linux", "fault"), ("Windows", "warning")])
def test_a_compiler_that_fails_is_a_fault_where_one_is_easy_to_install(
    system: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(software, "find_compiler", lambda device: "g++")
    monkeypatch.setattr(software, "compiler_error", lambda *_: "Python.h: No such file or directory")
    found = find("compiler", tmp_path)
    assert found.status == status
    assert "g++ was found, but torch cannot compile: Python.h: No such file" in found.found
    assert "python3-dev" in found.advice


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_a_wrong_four_bit_product_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bitsandbytes

    real = bitsandbytes.matmul_4bit
    monkeypatch.setattr(bitsandbytes, "matmul_4bit", lambda *arguments: 1.1 * real(*arguments))
    found = find("bitsandbytes", tmp_path)
    assert found.status == "fault"
    assert "computes wrong products on cpu (off by 2e-01" in found.found


def test_without_bitsandbytes_only_a_four_bit_recipe_is_in_trouble(write_recipe, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert find("bitsandbytes", tmp_path).status == "skipped"
    assert find("bitsandbytes", tmp_path, write_recipe(model__use_4bit=True)).status == "fault"
