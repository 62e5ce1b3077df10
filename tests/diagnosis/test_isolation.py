from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llmcls.diagnosis.checks import Check
from llmcls.diagnosis.findings import Finding, Subject
from llmcls.diagnosis.isolation import run_isolated

pytestmark = pytest.mark.slow


def run(folder: Path, *functions: str, seconds: int = 60) -> list[Finding]:
    checks = [Check(name, f"tests.diagnosis.broken_checks:{name}", seconds) for name in functions]
    return [finding for _, finding, _ in run_isolated(checks, Subject(None, folder))]


@pytest.mark.skipif(sys.platform == "win32", reason="signals end a process differently there")
def test_after_a_crash_or_an_exception_the_next_check_has_a_new_process(tmp_path: Path) -> None:
    first, same, raised, second, crashed, third = run(tmp_path, "fine", "fine", "raises", "fine", "crashes", "fine")
    assert first == same
    assert raised.found.startswith("RuntimeError: CUDA error")
    assert crashed.status == "fault"
    assert crashed.found == "the check ended its process with signal 9: native: cannot open libcudart.so"
    assert first.status == second.status == third.status == "ok"
    assert len({finding.details["process"] for finding in (first, second, third)}) == 3


def test_a_check_that_hangs_is_ended(tmp_path: Path) -> None:
    hung, next_one = run(tmp_path, "hangs", "fine", seconds=3)
    assert hung.status == "fault"
    assert hung.found == "it did not end within 3 s"
    assert next_one.status == "ok"


def test_what_checks_print_goes_to_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "fine")
    assert capfd.readouterr() == ("", "")
    assert "this goes to a file" in (tmp_path / "output.txt").read_text(encoding="utf-8")
