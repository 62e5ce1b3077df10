from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmcls.prediction.resumable_predictions import lock_of
from llmcls.results.lock import locked
from tests.conftest import Experiment
from tests.helpers import refusal


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--rows", 0], "--rows is 0; give a number of texts, such as 100"),
        (["--seed", -1], "--seed is -1; give a number from 0 to 4294967295"),
        (["--out", "list.xlsx"], "--out is list.xlsx; the list is a CSV file, give a name such as to_label.csv"),
        (["--out", "pool.csv"], "--out is --pool; name another file, the pool is needed for the next list"),
        ([], "nowhere is not a run folder"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_what_cannot_work_is_refused_in_one_sentence(capsys, options: list[object], sentence: str) -> None:
    assert sentence in refusal(capsys, "label", "--run", "nowhere", "--pool", "pool.csv", "--out", "list.csv", *options)


@pytest.mark.slow
def test_a_list_that_another_process_writes_is_left_alone(trained_once: Experiment, tmp_path: Path, capsys) -> None:
    output = tmp_path / "list.csv"
    with locked(lock_of(output), str(output)):
        found = refusal(capsys, "label", "--run", trained_once.runs[0], "--pool", "pool.csv", "--out", output)
    assert f"{output} is in use by process {os.getpid()} on " in found
    assert list(tmp_path.iterdir()) == []
