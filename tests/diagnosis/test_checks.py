from __future__ import annotations

import importlib
from pathlib import Path

from llmcls.diagnosis.checks import CHECKS, Check, first_line, run_check
from llmcls.diagnosis.findings import Subject, fault, skipped


def run(function: str, folder: Path):
    return run_check(Check("planted", f"tests.diagnosis.broken_checks:{function}"), Subject(None, folder))


def test_every_check_has_a_name_of_its_own_and_a_function() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    for check in CHECKS:
        module, _, function = check.function.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_an_exception_is_a_fault_with_its_first_line_and_the_traceback_is_kept_for_the_file(tmp_path: Path) -> None:
    finding, raised = run("raises", tmp_path)
    assert raised
    assert finding.status == "fault"
    assert finding.found == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert "report it with doctor.json" in finding.advice
    assert finding.details["traceback"].startswith("Traceback")


def test_a_library_that_cannot_be_imported_is_a_fault(tmp_path: Path) -> None:
    finding, _ = run_check(Check("planted", "llmcls.diagnosis.nowhere:check"), Subject(None, tmp_path))
    assert finding.found == "ModuleNotFoundError: No module named 'llmcls.diagnosis.nowhere'"


def test_an_error_of_the_user_is_divided_into_what_is_wrong_and_what_to_do(tmp_path: Path) -> None:
    assert run("refuses", tmp_path) == (
        fault("data.csv, row 3: the class is empty", "fill it in or drop the row"),
        False,
    )


def test_what_does_not_apply_is_skipped_with_the_reason(tmp_path: Path) -> None:
    assert run("does_not_apply", tmp_path) == (skipped("no recipe was given"), False)


def test_an_error_without_words_is_named_by_its_class() -> None:
    assert first_line(MemoryError()) == "MemoryError"
