"""What the tests of the doctor share: its command and its checks in this process, where a test can plant a fault."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from llmcls import doctor
from llmcls.diagnosis.checks import CHECKS, Check, run_check
from llmcls.diagnosis.findings import Finding, Subject
from llmcls.recipe.load import load_recipe


def run_here(checks: Sequence[Check], subject: Subject) -> Iterator[tuple[Check, Finding, float]]:
    """Run checks as `run_isolated` does, without another process."""
    for check in checks:
        yield check, run_check(check, subject)[0], 0.0


def find(name: str, folder: Path, recipe: Path | None = None, *overrides: str) -> Finding:
    """What one check finds."""
    subject = Subject(None if recipe is None else load_recipe(recipe, list(overrides)), folder)
    return run_check(next(check for check in CHECKS if check.name == name), subject)[0]


def examine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], output: Path, *arguments: str
) -> tuple[int, list[str], dict[str, Any]]:
    """Run the command in this process; returns its exit code, the lines that it printed, and what it wrote."""
    monkeypatch.setattr(doctor, "run_isolated", run_here)
    capsys.readouterr()
    code = 0
    try:
        doctor.main([*arguments, "--output", str(output)])
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, capsys.readouterr().out.splitlines(), json.loads(output.read_text(encoding="utf-8"))
