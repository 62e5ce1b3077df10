from __future__ import annotations

import sys
import threading
from typing import Any

import pytest

from llmcls.common.user_error import UserError
from llmcls.recipe.load import load_recipe
from llmcls.results.run_folder import RunFolder
from llmcls.training.trackers import Sink, Tracker, close_all, open_trackers
from tests.helpers import read_json, read_lines, train


def test_a_tracker_gets_every_number_in_order_and_is_closed() -> None:
    got: list[Any] = []
    tracker = Tracker(
        "board", lambda: Sink(lambda step, numbers: got.append((step, numbers)), lambda: got.append("end"))
    )
    for step in range(100):
        tracker.send(step, {"loss": float(step)})
    tracker.close()
    assert got == [*((step, {"loss": float(step)}) for step in range(100)), "end"]


@pytest.mark.parametrize("when", ["open", "send", "close"])
def test_a_tracker_that_fails_is_dropped_with_one_warning(when: str, log_lines: list[str]) -> None:
    def failing(*_: Any) -> None:
        raise ConnectionError("the service\nis gone")

    def quiet(*_: Any) -> None:
        pass

    def opened() -> Sink:
        if when == "open":
            failing()
        return Sink(failing if when == "send" else quiet, failing if when == "close" else quiet)

    tracker = Tracker("wandb", opened)
    for step in range(3):
        tracker.send(step, {"loss": 1.0})
    tracker.close()
    assert log_lines == [
        "wandb failed (the service is gone); training continues without it, and metrics.jsonl has its numbers"
    ]


def test_a_tracker_that_hangs_holds_up_neither_training_nor_its_end(log_lines: list[str]) -> None:
    never = threading.Event()
    hanging = Tracker("wandb", lambda: Sink(lambda step, numbers: bool(never.wait()) and None, lambda: None))
    for step in range(1000):
        hanging.send(step, {"loss": 1.0})
    hanging.close(seconds=0.05)
    assert log_lines == ["wandb did not finish within 0 s; its last numbers may be missing"]
    never.set()


def test_an_interrupt_of_the_main_thread_cannot_leave_tensorboard_half_way(write_recipe, tmp_path) -> None:
    recipe = load_recipe(write_recipe(train__report_to=["tensorboard"]))
    trackers = open_trackers(RunFolder(tmp_path), recipe, 0)
    names = {thread.name for thread in threading.enumerate()}
    assert "llmcls tensorboard" in names
    close_all(trackers)
    assert list((tmp_path / "logs").glob("events.*"))


def test_logs_that_cannot_be_written_do_not_end_a_training(write_recipe, monkeypatch, log_lines) -> None:
    from torch.utils import tensorboard

    class Broken:
        def __init__(self, *_: Any, **__: Any) -> None:
            raise PermissionError(13, "Permission denied", "logs")

    monkeypatch.setattr(tensorboard, "SummaryWriter", Broken)
    run = train(write_recipe(train__max_steps=2, train__report_to=["tensorboard"])) / "run_0"
    assert read_json(run / "metrics.json")["steps"] == 2
    assert [line["step"] for line in read_lines(run / "metrics.jsonl") if line["split"] == "train"] == [2]
    assert len([line for line in log_lines if line.startswith("tensorboard failed")]) == 1


def test_wandb_that_is_not_installed_is_one_sentence(write_recipe, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"train\.report_to names wandb, which is not installed; run `pip install"):
        open_trackers(RunFolder(tmp_path), load_recipe(write_recipe(train__report_to=["wandb"])), 0)
