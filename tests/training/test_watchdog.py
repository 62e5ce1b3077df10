from __future__ import annotations

import threading
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmcls.common.files import write_json
from llmcls.common.heartbeat import beat, pulse, waiting
from llmcls.results.run_folder import RunFolder
from llmcls.training import loop, watchdog
from llmcls.training.watchdog import EXIT_STUCK, Sign, watched
from tests.helpers import train

# Seconds after which a test gives up waiting for the watchdog.
PATIENCE = 120


class Ended:
    """Stands for the end of the process: notes the exit code, and lets the stuck work continue."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.codes: list[int] = []
        self.event = threading.Event()
        self.watchdogs: list[Any] = []
        monkeypatch.setattr(watchdog, "end_process", self)
        monkeypatch.setattr(watchdog, "SECONDS_BETWEEN_LOOKS", 0.05)
        start = watchdog._Watchdog.start
        monkeypatch.setattr(watchdog._Watchdog, "start", lambda dog: (self.watchdogs.append(dog), start(dog)))

    def __call__(self, code: int) -> None:
        self.codes.append(code)
        self.event.set()

    def planted_hang(self) -> None:
        # Only now is it short, so that a busy machine cannot be taken for a stuck one before.
        self.watchdogs[-1]._limit = 0.3
        assert self.event.wait(PATIENCE)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Ended:
    return Ended(monkeypatch)


def rank(number: int, of: int) -> Any:
    """All that the watchdog asks an accelerator."""
    return SimpleNamespace(process_index=number, num_processes=of)


@pytest.mark.slow
def test_a_training_that_hangs_says_where_and_ends_with_its_checkpoint(
    write_recipe, ended: Ended, monkeypatch, log_lines
) -> None:
    recipe = write_recipe(train__max_steps=5, train__eval_steps=2, train__train_metrics_rows=0, data__test_csv=None)
    real = loop.optimizer_step

    def step(setup: Any, *arguments: Any) -> Any:
        if arguments[-1] == 3 and not ended.codes:
            ended.planted_hang()
        return real(setup, *arguments)

    monkeypatch.setattr(loop, "optimizer_step", step)
    run = train(recipe) / "run_0"
    assert ended.codes == [EXIT_STUCK]
    (said,) = [line for line in log_lines if "exit code 86" in line]
    assert "no sign of life for 0.005 minutes (train.stuck_minutes)" in said
    assert f"the same command resumes it from {run / 'checkpoints' / 'last'} (step 2)" in said
    for place in (log_lines, (run / "log.txt").read_text(encoding="utf-8").splitlines()):
        assert any("planted_hang" in line for line in "\n".join(place).splitlines())
    assert not (run / "heartbeats").exists()
    assert not [t for t in threading.enumerate() if t.name in ("llmcls watchdog", "llmcls signs of life")]


def test_the_main_process_names_the_rank_that_is_behind(tmp_path: Path, ended: Ended, log_lines, capfd) -> None:
    run = RunFolder(tmp_path)
    others = [Sign(r, f"host{r}", pulse().beats + 3, False, "step 8", ["loop.py:1 step"]) for r in (1, 3)]
    others.append(Sign(2, "host2", pulse().beats, False, "step 7", ["data.py:9 read_slow_disk"]))

    def planted_hang() -> None:
        with watched(run, 30.0, rank(0, 4)):
            beat("step", 8)
            for sign in others:
                write_json(run.path / "heartbeats" / f"rank_{sign.rank}.json", asdict(sign))
            ended.planted_hang()

    planted_hang()
    text = "\n".join(log_lines)
    assert text.startswith("rank 2 on host2 is behind: step 7; no sign of life for 0.005 minutes")
    for place in ("planted_hang", "read_slow_disk", "rank 1 on host1: step 8", "from its beginning"):
        assert place in text
    assert "planted_hang" in capfd.readouterr().err


def test_another_rank_shows_where_it_waits_and_leaves_the_log_to_the_main_process(
    tmp_path: Path, ended: Ended, log_lines, monkeypatch
) -> None:
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr(watchdog, "SECONDS_TO_TELL", 1.0)
    monkeypatch.setattr(watchdog, "write_json", lambda path, value: shown.append({"path": path, **value}))
    with watched(RunFolder(tmp_path), 30.0, rank(1, 2)):
        ended.planted_hang()
    assert shown[-1]["path"] == tmp_path / "heartbeats" / "rank_1.json"
    assert any("planted_hang" in call for call in shown[-1]["stack"])
    assert log_lines == []
    assert ended.codes == [EXIT_STUCK]


def test_who_waits_for_a_watched_one_or_sets_zero_is_left_alone(tmp_path: Path, ended: Ended) -> None:
    with watched(RunFolder(tmp_path), 0.0, rank(0, 1)):
        assert not [t for t in threading.enumerate() if t.name == "llmcls watchdog"]
    with watched(RunFolder(tmp_path), 30.0, rank(0, 1)), waiting():
        ended.watchdogs[-1]._limit = 0.1
        assert not ended.event.wait(1.0)
    assert ended.codes == []
