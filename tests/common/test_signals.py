from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from llmcls.common.signals import STOP_AFTER, stop_planned, stop_requested
from tests.helpers import ROOT

# In a process of its own: a handler stays for the life of a process.
CODE = """
import os, signal, sys
from llmcls.common.signals import stop_requested, watch_signals
watch_signals()
print(stop_requested())
os.kill(os.getpid(), int(sys.argv[1]))
print(stop_requested())
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_is_recorded_and_does_not_end_the_process(name: str) -> None:
    number = str(int(getattr(signal, name)))
    done = subprocess.run([sys.executable, "-c", CODE, number], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.split() == ["False", "True"]


def test_a_rehearsal_stops_after_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STOP_AFTER, "3")
    assert [stop_planned(step) for step in (2, 3, 4)] == [False, True, False]
    assert not stop_requested()
    monkeypatch.delenv(STOP_AFTER)
    assert not stop_planned(3)
