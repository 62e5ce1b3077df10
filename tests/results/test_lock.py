from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llmcls.common.user_error import UserError
from llmcls.results import lock
from llmcls.results.lock import in_use, locked
from tests.helpers import ROOT, until

HOLD = """
import pathlib, sys
from llmcls.results.lock import in_use, locked
with locked(pathlib.Path(sys.argv[1]), "outputs/a"):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(path: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLD, str(path)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / ".lock"


def as_foreign(path: Path, **changes: Any) -> None:
    """Let a lock look as if a process of another machine held it."""
    path.write_text(json.dumps(json.loads(path.read_text()) | {"machine": "another", "host": "node7"} | changes))


def test_a_lock_says_who_holds_it_and_is_gone_afterwards(path: Path) -> None:
    with locked(path, "outputs/a"):
        owner = json.loads(path.read_text())
        assert owner["process"] == os.getpid()
        assert owner["host"]
        assert owner["since"]
    assert list(path.parent.iterdir()) == []


def test_a_lock_is_gone_after_an_error(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(path, "outputs/a"):
        raise ZeroDivisionError
    assert list(path.parent.iterdir()) == []


def test_a_living_owner_is_named_and_a_dead_one_is_followed(path: Path) -> None:
    process = holder(path)
    with (
        pytest.raises(UserError, match=rf"outputs/a is in use by process {process.pid} on .* since .*; wait"),
        locked(path, "outputs/a"),
    ):
        pass
    process.kill()
    process.wait()
    with locked(path, "outputs/a"):
        assert json.loads(path.read_text())["process"] == os.getpid()
    assert list(path.parent.iterdir()) == []


def test_a_process_that_only_has_the_number_of_the_owner_is_another_one(path: Path) -> None:
    process = holder(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"started": 1.0}))
    with locked(path, "outputs/a"):
        assert json.loads(path.read_text())["process"] == os.getpid()
    process.kill()
    process.wait()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"process": 1}'])
def test_a_damaged_lock_without_a_sign_of_life_is_replaced(path: Path, content: str) -> None:
    path.parent.mkdir()
    path.write_text(content)
    os.utime(path, (time.time() - 3600, time.time() - 3600))
    with locked(path, "outputs/a"):
        assert json.loads(path.read_text())["process"] == os.getpid()


def test_an_owner_on_another_machine_that_gives_a_sign_of_life_is_left_alone(path: Path, monkeypatch) -> None:
    process = holder(path)
    as_foreign(path)
    waits: list[float] = []

    def living(seconds: float) -> None:
        waits.append(seconds)
        os.utime(path, (time.time() + len(waits), time.time() + len(waits)))

    monkeypatch.setattr(lock.time, "sleep", living)
    with pytest.raises(UserError, match=r"in use by process .* on node7"), locked(path, "outputs/a"):
        pass
    assert len(waits) == 1
    process.kill()
    process.wait()


def test_an_owner_on_another_machine_that_gives_none_is_followed(path: Path, monkeypatch) -> None:
    process = holder(path)
    as_foreign(path)
    process.kill()
    process.wait()

    clock = itertools.count(time.time(), 50)
    monkeypatch.setattr(lock, "_now", lambda path: next(clock))
    waits: list[float] = []
    monkeypatch.setattr(lock.time, "sleep", waits.append)
    with locked(path, "outputs/a"):
        assert json.loads(path.read_text())["process"] == os.getpid()
    assert len(waits) == 3


def test_the_owner_gives_signs_of_life(path: Path, monkeypatch) -> None:
    monkeypatch.setattr(lock, "SECONDS_BETWEEN_SIGNS", 0.01)
    with locked(path, "outputs/a"):
        os.utime(path, (1.0, 1.0))
        until(lambda: path.stat().st_mtime >= 2)


def test_what_a_process_left_that_was_killed_while_it_took_the_lock_is_removed(path: Path) -> None:
    left = path.with_name(f"{path.name}.{'0' * 32}")
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    with locked(path, "folder"):
        owner = json.loads(path.read_text())
        left.write_text(json.dumps(owner | {"process": int(ended.stdout)}))
        living = path.with_name(f"{path.name}.{'1' * 32}")
        living.write_text(json.dumps(owner))
    with locked(path, "folder"):
        assert not left.exists()
        assert living.exists()


def test_one_of_many_that_start_at_once_gets_the_lock(path: Path) -> None:
    code = HOLD.replace("sys.stdin.read()", "import time; time.sleep(1)")
    command = [sys.executable, "-c", code, str(path)]
    started = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    outputs = [process.communicate() for process in started]
    assert sum("held" in out for out, _ in outputs) == 1
    assert sum("is in use by process" in err for _, err in outputs) == 3


def test_a_list_can_ask_whether_a_lock_is_held_and_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    assert not in_use(path)
    with locked(path, "it"):
        before = sorted(tmp_path.iterdir())
        assert in_use(path)
        assert sorted(tmp_path.iterdir()) == before
        held = path.read_text(encoding="utf-8")
    dead = json.loads(held) | {"process": 2**22 + 1}
    path.write_text(json.dumps(dead), encoding="utf-8")
    assert not in_use(path)
    elsewhere = dead | {"machine": "another"}
    path.write_text(json.dumps(elsewhere), encoding="utf-8")
    assert in_use(path), "it gave a sign of life just now"
    os.utime(path, (0, 0))
    assert not in_use(path)


def test_a_process_killed_while_it_removed_a_lock_holds_up_nobody(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = holder(path)
    process.kill()
    process.wait()
    turn = path.with_name(f"{path.name}.turn")
    turn.mkdir()
    os.utime(turn, (time.time() - 20, time.time() - 20))
    waits = itertools.count(1)

    def wait(_: float) -> None:
        assert next(waits) < 5, "it waits for a process that is dead"

    monkeypatch.setattr(lock.time, "sleep", wait)
    with locked(path, "outputs/a"):
        assert json.loads(path.read_text())["process"] == os.getpid()
    assert list(path.parent.iterdir()) == []
