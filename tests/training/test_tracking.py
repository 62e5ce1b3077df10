from __future__ import annotations

import logging
from pathlib import Path

import pytest

from llmcls.common.signals import Interrupted
from llmcls.common.user_error import UserError
from llmcls.recipe.load import load_recipe
from llmcls.results.run_folder import RunFolder
from llmcls.training.tracking import RunLog, _drop_after
from tests.helpers import read_lines


def test_a_resumed_run_drops_what_was_logged_after_its_checkpoint(write_recipe, tmp_path: Path) -> None:
    run, recipe = RunFolder(tmp_path), load_recipe(write_recipe())
    first = RunLog(run, recipe)
    for step in (1, 2, 3):
        first.write(step, "train", {"loss": 1 / step})
    first.close()
    with run.metrics_log.open("a") as file:
        # A killed process leaves half a line.
        file.write('{"step": 4, "spl')
    second = RunLog(run, recipe, resumed_step=2)
    second.write(3, "train", {"loss": 9.0})
    second.close()
    assert [(line["step"], line["loss"]) for line in read_lines(run.metrics_log)] == [(1, 1.0), (2, 0.5), (3, 9.0)]


def test_the_log_of_the_run_has_its_messages_and_ends_with_it(write_recipe, tmp_path: Path) -> None:
    run, root = RunFolder(tmp_path), logging.getLogger("llmcls")
    before = list(root.handlers)
    root.setLevel(logging.INFO)
    log = RunLog(run, load_recipe(write_recipe()))
    logging.getLogger("llmcls.training").info("inside")
    log.close()
    logging.getLogger("llmcls.training").info("outside")
    assert root.handlers == before
    text = run.log.read_text(encoding="utf-8")
    assert "inside" in text
    assert "outside" not in text


def test_tensorboard_gets_nested_numbers_by_name(write_recipe, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = RunFolder(tmp_path)
    log = RunLog(run, load_recipe(write_recipe(train__report_to=["tensorboard"])))
    log.write(5, "test", {"per_class": {"books": {"f1": 0.25}}, "note": "text", "bad": float("nan")})
    log.close()
    events = EventAccumulator(str(run.tensorboard)).Reload()
    assert events.Tags()["scalars"] == ["test/per_class/books/f1"]
    assert [(e.step, e.value) for e in events.Scalars("test/per_class/books/f1")] == [(5, 0.25)]


def test_a_log_file_that_cannot_be_written_is_given_up_with_one_warning(
    write_recipe, tmp_path: Path, log_lines
) -> None:
    run = RunFolder(tmp_path)
    run.log.mkdir()
    log = RunLog(run, load_recipe(write_recipe()))
    log.write(1, "train", {"loss": 1.0})
    log.close()
    assert [line for line in log_lines if "log.txt cannot be written" in line]
    assert len(read_lines(run.metrics_log)) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device")
def test_a_log_file_on_a_full_disk_is_given_up_with_one_warning(write_recipe, tmp_path: Path, log_lines) -> None:
    run, root = RunFolder(tmp_path), logging.getLogger("llmcls")
    run.log.symlink_to("/dev/full")
    log = RunLog(run, load_recipe(write_recipe()))
    for i in range(3):
        logging.getLogger("llmcls.training").info("line %d", i)
    assert len([line for line in log_lines if "cannot be written any more" in line]) == 1
    log.close()
    assert not [handler for handler in root.handlers if isinstance(handler, logging.FileHandler)]


@pytest.mark.parametrize(
    "error, text",
    [
        (UserError("outputs/last: the disk is full"), "outputs/last: the disk is full"),
        (Interrupted("stopped by SIGTERM after step 3 of 9; saved"), "stopped by SIGTERM after step 3 of 9; saved"),
        (ZeroDivisionError("a bug"), "ZeroDivisionError: a bug"),
    ],
    ids=["mistake", "signal", "bug"],
)
def test_the_log_says_why_a_run_ended(write_recipe, tmp_path: Path, capsys, error: Exception, text: str) -> None:
    run = RunFolder(tmp_path)
    RunLog(run, load_recipe(write_recipe())).close(error)
    assert text in run.log.read_text(encoding="utf-8")
    assert capsys.readouterr().err == ""


def test_the_lines_of_an_interrupted_end_are_dropped_as_damaged_ones_are(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = ['{"step": 4, "split": "train", "loss": 1}', '{"step": 4, "split": "final_test", "loss": 1}', '{"step": 5']
    path.write_text("\n".join([*lines, '{"a": {}', "\ufffd", '{"step": 8, "split": "train"}', "[]", ""]))
    _drop_after(path, 4)
    assert path.read_text() == lines[0] + "\n"
