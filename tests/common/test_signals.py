from __future__ import annotations

import os
import subprocess
import sys

import pytest

from llmcls.common.signals import EXIT_INTERRUPTED, STOP_AFTER, stop_planned, stop_requested
from tests.helpers import ROOT

pytestmark = pytest.mark.slow

# In a process of its own: a handler stays for the life of a process.
CODE = """
import contextlib, os, signal, sys, time
from llmcls.common import signals
from llmcls.common.command import run_command
from llmcls.common.signals import *
signals.SECONDS_OF_ONE_INTERRUPT = signals.SECONDS_OF_ONE_INTERRUPT_OF_A_LAUNCHER = 0.2
def main():
    watch_signals()
    with stops_between_steps() if sys.argv[1] == "stepping" else contextlib.nullcontext():
        for name in sys.argv[2:]:
            print(stop_requested(), flush=True)
            os.kill(os.getpid(), getattr(signal, name))
            # In the thread of Python's handlers, C code runs longer than anybody wants to wait.
            time.sleep(0.5)
    print(signal_name(), stop_requested(), flush=True)
    sys.exit(interrupted_code())
run_command(main)
"""


def run_code(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CODE, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | environment)


posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


@posix
@pytest.mark.parametrize("name, code", [("SIGTERM", EXIT_INTERRUPTED), ("SIGUSR1", EXIT_INTERRUPTED), ("SIGINT", 130)])
def test_while_steps_are_taken_a_signal_is_only_recorded(name: str, code: int) -> None:
    done = run_code("stepping", name)
    assert done.stdout.split() == ["False", name, "True"]
    assert done.returncode == code
    assert ("press Ctrl-C again to end at once" in done.stderr) == (name == "SIGINT")


@posix
@pytest.mark.parametrize("name, code", [("SIGTERM", EXIT_INTERRUPTED), ("SIGUSR1", EXIT_INTERRUPTED), ("SIGINT", 130)])
def test_where_nothing_has_to_be_saved_a_signal_ends_the_command(name: str, code: int) -> None:
    done = run_code("loading", name)
    assert done.stdout.split() == ["False"]
    assert done.returncode == code
    assert done.stderr == "interrupted; run the same command again to resume\n"


IGNORED = """
import os, signal, time, weakref
from llmcls.common.command import run_command
from llmcls.common.signals import *
class Thing: pass
def main():
    watch_signals()
    thing = Thing()
    reference = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGINT) or [i for i in range(10)])
    del thing
    time.sleep(20)
    print("went on", flush=True)
run_command(main)
"""


@posix
def test_an_interrupt_that_python_ignores_is_not_lost() -> None:
    # Exceptions in a callback of the garbage collection lead nowhere.
    done = subprocess.run([sys.executable, "-c", IGNORED], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == ""
    assert done.stderr == "interrupted; run the same command again to resume\n"
    assert done.returncode == 130


@posix
def test_a_batch_system_may_repeat_its_signal() -> None:
    done = run_code("stepping", "SIGUSR1", "SIGUSR1", "SIGTERM")
    assert done.stdout.split() == ["False", "True", "True", "SIGUSR1", "True"]
    assert done.returncode == EXIT_INTERRUPTED


@posix
@pytest.mark.parametrize("launched", ["", "TORCHELASTIC_RUN_ID"])
def test_a_second_interrupt_ends_the_process_whatever_it_does(launched: str) -> None:
    done = run_code("stepping", "SIGINT", "SIGINT", **({launched: "1"} if launched else {}))
    assert done.stdout.split() == ["False", "True"]
    assert done.returncode == 130
    assert "ended at once; the same command resumes from the last checkpoint" in done.stderr


LAUNCHER = """
import os, signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=os.environ | {"ACCELERATE_MIXED_PRECISION": "no"})
sys.stdin.read()
"""
RANK = """
import os, sys, time
from llmcls.common.signals import *
watch_signals()
with stops_between_steps():
    print(os.getpid(), flush=True)
    while not stop_requested():
        time.sleep(0.05)
    print("saved after", signal_name(), flush=True)
"""


DEAF = """
import os, time
from llmcls.common import signals
signals.SECONDS_WITHOUT_LAUNCHER_OR_STEPS = 0.5
signals.watch_signals()
print(os.getpid(), flush=True)
for _ in range(100):
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


def outlives(rank: str, launcher: str = LAUNCHER) -> str:
    """What a process prints after its launcher was killed, until it ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", launcher, rank], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip().isdigit()
    process.kill()
    process.wait()
    # The pipe ends when the rank, which inherited it, has ended.
    return process.stdout.read().strip()


@posix
def test_a_rank_whose_launcher_was_killed_saves_and_ends() -> None:
    assert outlives(RANK) == "saved after SIGTERM"


@posix
def test_a_rank_that_swallows_interrupts_while_it_connects_ends_too() -> None:
    assert outlives(DEAF) == "interrupted"


@posix
def test_a_process_that_nobody_launched_outlives_its_shell() -> None:
    code = RANK.replace("not stop_requested()", "time.monotonic() < end and not stop_requested()").replace(
        "    while", "    end = time.monotonic() + 3\n    while"
    )
    shell = LAUNCHER.replace('{"ACCELERATE_MIXED_PRECISION": "no"}', "{}")
    assert outlives(code, shell) == "saved after a signal"


def test_a_rehearsal_stops_after_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STOP_AFTER, "3")
    assert [stop_planned(step) for step in (2, 3, 4)] == [False, True, False]
    assert not stop_requested()
    monkeypatch.delenv(STOP_AFTER)
    assert not stop_planned(3)
