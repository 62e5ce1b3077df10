"""Trials over stand-in trainings: small scripts that write what a training writes."""

from __future__ import annotations

import json
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from llmcls.common.signals import Interrupted
from llmcls.results.lock import locked
from llmcls.results.run_folder import RunFolder
from llmcls.search.trial import Evaluations, train_trial

SCRIPT = """
import json, pathlib, signal, sys, time
run = pathlib.Path(sys.argv[1]); run.mkdir(parents=True, exist_ok=True)
signal.signal(signal.SIGTERM, lambda *_: ((run / "saved").write_text("yes"), sys.exit(85)))
def evaluate(step, value):
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "split": "validation", "f1_micro": value}) + "\\n")
"""


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("llmcls.search.trial.SECONDS_BETWEEN_LOOKS", 0.05)
    run = RunFolder(tmp_path / "tune-000" / "run_0")

    def make(body: str) -> tuple[list[str], RunFolder]:
        return [sys.executable, "-c", SCRIPT + body, str(run.path)], run

    return make


def test_the_value_of_a_trial_is_that_of_the_finished_run(training) -> None:
    command, run = training(
        "evaluate(1, 0.9); (run / 'metrics.json').write_text(json.dumps({'validation': {'f1_micro': 0.75}}))"
    )
    outcome = train_trial(command, run, "f1_micro", lambda number, value: False)
    assert (outcome.value, outcome.failure) == (0.75, None)


def test_a_trial_that_is_behind_saves_and_ends(training) -> None:
    command, run = training("evaluate(1, 0.5); evaluate(2, 0.4); time.sleep(60)")
    seen = []

    def is_behind(number: int, value: float) -> bool:
        seen.append((number, value))
        return number == 1

    outcome = train_trial(command, run, "f1_micro", is_behind)
    assert (outcome.value, outcome.failure) == (None, None)
    assert seen == [(0, 0.5), (1, 0.4)]
    assert (run.path / "saved").exists()


def test_a_failed_training_gives_its_last_error_sentence(training) -> None:
    command, run = training("print('error: out of memory; lower batch_size', file=sys.stderr); sys.exit(2)")
    assert train_trial(command, run, "f1_micro").failure == "error: out of memory; lower batch_size"
    command, run = training("sys.exit(3)")
    # The sentence of the earlier start is not taken for its own.
    assert train_trial(command, run, "f1_micro").failure.startswith("exit code 3")


def test_a_training_that_was_stopped_by_a_signal_can_be_resumed(training) -> None:
    command, run = training("sys.exit(85)")
    with pytest.raises(Interrupted, match="run the same command again to resume"):
        train_trial(command, run, "f1_micro")


def test_a_training_that_a_killed_search_left_is_waited_for(training) -> None:
    # What it would say while the other one trains is a failure.
    command, run = training(
        "sys.exit(2) if (run.parent / '.lock').exists() else "
        "(run / 'metrics.json').write_text(json.dumps({'validation': {'f1_micro': 0.5}}))"
    )
    run.path.mkdir(parents=True)
    with ExitStack() as left:
        left.enter_context(locked(run.experiment.lock, "the run"))
        threading.Timer(0.5, left.close).start()
        assert train_trial(command, run, "f1_micro").value == 0.5


def test_an_evaluation_counts_once_and_a_line_being_written_waits(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    evaluations = Evaluations(path, "f1_micro")
    assert evaluations.new() == []
    line = json.dumps({"step": 1, "split": "validation", "f1_micro": 0.5})
    path.write_text(json.dumps({"step": 1, "split": "train", "loss": 1.0}) + f"\n{line}\n{line}\n" + line[:20])
    assert evaluations.new() == [0.5]
    path.write_text(f"{line}\n" + json.dumps({"step": 2, "split": "validation", "f1_micro": 0.6}) + "\n")
    assert evaluations.new() == [0.6]
    assert evaluations.seen == 2
