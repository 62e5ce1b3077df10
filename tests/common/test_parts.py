from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmcls.common.parts import run_part
from llmcls.common.user_error import UserError
from tests.helpers import ROOT, saves_on, until


def test_a_part_that_fails_or_is_stopped_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(code: int) -> Any:
        return lambda _: SimpleNamespace(wait=lambda: code)

    monkeypatch.setattr("llmcls.common.parts.subprocess.Popen", ends(1))
    with pytest.raises(UserError, match="the training ended with exit code 1, see above; run again to resume"):
        run_part(["train"], "the training")
    monkeypatch.setattr("llmcls.common.parts.subprocess.Popen", ends(85))
    with pytest.raises(SystemExit) as stop:
        run_part(["train"], "the training")
    assert stop.value.code == 85


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM that a process can handle")
def test_a_signal_to_the_command_lets_its_part_save(tmp_path: Path) -> None:
    part = saves_on("SIGTERM", 85)
    command = (
        "import sys; from llmcls.common.command import run_command; from llmcls.common.signals import watch_signals\n"
        "from llmcls.common.parts import run_part; watch_signals()\n"
        f"run_command(lambda: run_part([sys.executable, '-c', {part!r}], 'x'))"
    )
    process = subprocess.Popen([sys.executable, "-c", command], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    until((tmp_path / "started").exists, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 85
    assert (tmp_path / "saved").exists()
