from __future__ import annotations

import threading
from typing import Any

import pytest

from llmcls.train import main
from llmcls.training import loop, timed_checkpoints
from tests.helpers import fresh_accelerator, metrics_of, read_json
from tests.training.test_interval import lines_of

pytestmark = pytest.mark.slow


class Killed(Exception):
    """What stands for a kill: nothing in the project catches it."""


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let training die before a step."""
    real = loop.optimizer_step

    def dying(*arguments: Any) -> Any:
        if arguments[-1] == step:
            raise Killed
        return real(*arguments)

    monkeypatch.setattr(loop, "optimizer_step", dying)


def test_a_kill_between_evaluations_loses_minutes_and_changes_nothing(write_recipe, monkeypatch, tmp_path) -> None:
    path = write_recipe(train__max_steps=8, train__logging_steps=3, train__save_minutes=1e-6)
    root = tmp_path / "outputs/tiny-llama/products"
    main([str(path), "exp.run_name=whole"])
    with monkeypatch.context() as patch:
        killed_at(7, patch)
        # Ask at every step, and let copies cost what they may.
        patch.setattr("llmcls.training.interval.SECONDS_BETWEEN_SIGNALS", 0.0)
        patch.setattr(timed_checkpoints, "LARGEST_SHARE", 1e9)
        with pytest.raises(Killed):
            main([str(path), "exp.run_name=killed"])
    assert not [thread for thread in threading.enumerate() if thread.name == "llmcls checkpoint"]
    # Training continues while a checkpoint is written, so it is that of one of the last steps.
    assert 2 <= read_json(root / "killed/run_0/checkpoints/last/progress.json")["step"] <= 7
    fresh_accelerator()
    main([str(path), "exp.run_name=killed"])
    assert metrics_of(root / "killed/run_0") == metrics_of(root / "whole/run_0")
    assert lines_of(root / "killed/run_0") == lines_of(root / "whole/run_0")


def test_without_minutes_only_evaluations_save(write_recipe, monkeypatch, tmp_path) -> None:
    path = write_recipe(train__max_steps=4, train__save_minutes=0)
    killed_at(3, monkeypatch)
    with pytest.raises(Killed):
        main([str(path)])
    assert not (tmp_path / "outputs/tiny-llama/products/run_0/checkpoints").exists()


def test_a_checkpoint_that_cannot_be_written_does_not_end_training(write_recipe, monkeypatch, log_lines) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(timed_checkpoints, "write_last", full)
    main([str(write_recipe(train__max_steps=3, train__save_minutes=1e-6))])
    assert [line for line in log_lines if line.startswith("the checkpoint of step 1 was not written: [Errno 28]")]


def test_a_large_state_is_copied_less_often(write_recipe, monkeypatch) -> None:
    now, copies = [0.0], []
    monkeypatch.setattr(timed_checkpoints.time, "monotonic", lambda: now[0])

    def slow(*arguments: Any) -> Any:
        copies.append(now[0])
        now[0] += 60.0
        return real(*arguments)

    real = timed_checkpoints.take_snapshot
    monkeypatch.setattr(timed_checkpoints, "take_snapshot", slow)
    step = loop.optimizer_step

    def timed(*arguments: Any) -> Any:
        now[0] += 1000.0
        return step(*arguments)

    monkeypatch.setattr(loop, "optimizer_step", timed)
    monkeypatch.setattr("llmcls.training.interval.SECONDS_BETWEEN_SIGNALS", 0.0)
    main([str(write_recipe(train__max_steps=12, train__save_minutes=10))])
    # A copy takes 60 s, so the next comes after 100 times that at the earliest.
    assert copies == [1000.0, 7060.0]
