from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llmcls.rehearsal import worker


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that writes how it was run."""
    (tmp_path / "shows_how.py").write_text(
        "import sys, pathlib\npathlib.Path(sys.argv[1]).write_text(repr((__name__, sys.argv[1:])))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pytest"])
    return "shows_how"


@pytest.mark.parametrize(
    "variable, value, stands_in",
    [("ACCELERATE_USE_FSDP", "true", True), ("ACCELERATE_USE_DEEPSPEED", "true", True),
     ("ACCELERATE_USE_FSDP", "false", False), ("ACCELERATE_MIXED_PRECISION", "no", False)],
)  # fmt: skip
def test_a_command_runs_as_python_would_and_only_sharded_engines_need_a_stand_in(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, stands_in: bool
) -> None:
    called: list[bool] = []
    monkeypatch.setattr(worker, "stand_in_for_gpus", lambda: called.append(True))
    monkeypatch.setenv(variable, value)
    out = str(tmp_path / "out")
    worker.main([module, out, "key=value"])
    assert Path(out).read_text() == repr(("__main__", [out, "key=value"]))
    assert bool(called) == stands_in
