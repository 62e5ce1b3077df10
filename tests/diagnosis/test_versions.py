from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from llmcls.diagnosis import versions
from tests.diagnosis.helpers import find


def pretend(monkeypatch: pytest.MonkeyPatch, installed: dict[str, str | None]) -> None:
    """Pretend that these versions are installed, or, for None, that a package is not."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        number = installed.get(name, real(name) if name not in installed else None)
        if number is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return number

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_what_is_installed_here_fits(tmp_path: Path) -> None:
    found = find("libraries", tmp_path)
    assert found.status == "ok"
    assert found.details["installed"]["torch"] == importlib.metadata.version("torch")


def test_old_new_and_missing_packages_are_named_with_the_command(tmp_path: Path, monkeypatch) -> None:
    pretend(monkeypatch, {"torch": "2.4.1", "transformers": "6.0.0", "peft": None})
    found = find("libraries", tmp_path)
    assert found.status == "fault"
    assert "torch 2.4.1 is installed, >=2.11 is required" in found.found
    assert "transformers 6.0.0 is installed, <6,>=5.20 is required" in found.found
    assert "peft is not installed" in found.found
    assert found.advice == ("run `pip install --upgrade 'torch>=2.11' 'transformers<6,>=5.20' 'peft>=0.20'`")


def test_optional_packages_are_needed_only_if_the_recipe_uses_them(write_recipe, tmp_path: Path, monkeypatch) -> None:
    pretend(monkeypatch, {"bitsandbytes": None, "wandb": "0.1"})
    found = find("libraries", tmp_path, write_recipe())
    assert found.status == "warning"
    assert "not installed (optional): bitsandbytes" in found.found
    assert "not fitting: wandb 0.1 (>=0.22 is required)" in found.found
    found = find("libraries", tmp_path, write_recipe(model__use_4bit=True))
    assert found.status == "fault"
    assert found.found == "bitsandbytes is not installed"


def test_without_a_checkout_the_installed_package_says_what_it_requires(tmp_path: Path, monkeypatch) -> None:
    listed = [
        "torch>=2.10",
        "bitsandbytes>=0.49; extra == '4bit'",
        "pytest>=8; extra == 'test'",
        "llmcls[4bit]; extra == 'all'",
    ]
    monkeypatch.setattr(versions, "PROJECT", tmp_path / "pyproject.toml")
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: listed)
    found = [(requirement.name, extra) for requirement, extra in versions.requirements()]
    assert found == [("torch", None), ("bitsandbytes", "4bit")]
