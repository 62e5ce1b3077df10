"""Decided files of the shared experiment; the promises themselves are in tests/evaluation/test_selective.py."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from llmcls.common.user_error import UserError
from llmcls.data.labels import LabelSpace
from llmcls.results.decided import decide
from llmcls.results.predictions import Predictions, prediction_lines
from llmcls.results.run_folder import RunFolder
from tests.helpers import read_lines


def test_unsure_labels_are_moved_and_sets_are_added(trained_once, tmp_path: Path) -> None:
    run, output = RunFolder(trained_once.runs[0]), tmp_path / "decided.jsonl"
    source = run.predictions("test")
    found = decide(run, source, output, "jsonl", 0.12, 0.9)
    assert found.abstention is not None
    assert found.sets is not None
    before, after = read_lines(source), read_lines(output)
    assert [line["id"] for line in after] == [line["id"] for line in before]
    for old, new in zip(before, after, strict=True):
        assert old["probabilities"] == new["probabilities"]
        assert sorted(new["labels"] + new["unsure"]) == sorted(old["labels"])
        assert all(old["probabilities"][name] >= found.abstention.cut - 1e-6 for name in new["labels"])
        assert all(old["probabilities"][name] < found.abstention.cut for name in new["unsure"])
        assert set(new["set"]) == {n for n, p in old["probabilities"].items() if p >= found.sets.cut - 1e-9}
    # The sentences count what is in the file.
    kept, decisions = (sum(len(line["labels"]) for line in lines) for lines in (after, before))
    covered = [len(set(new["set"]) & set(new["true"])) / len(new["true"]) for new in after if new["true"]]
    abstaining, sets = found.sentences()
    assert f"{kept / decisions:.1%} are kept here" in abstaining
    assert f"here they contain {np.mean(covered):.1%} of the true labels" in sets


def test_a_promise_that_the_rows_cannot_keep_makes_everything_unsure(trained_once, tmp_path: Path) -> None:
    run, output = RunFolder(trained_once.runs[0]), tmp_path / "decided.jsonl"
    found = decide(run, run.predictions("test"), output, "jsonl", 0.999, None)
    assert "a precision of 100% cannot be promised" in found.sentences()[0]
    assert all(not line["labels"] and "set" not in line for line in read_lines(output))


def test_an_undecided_row_of_a_single_label_task_is_an_empty_cell_of_csv(trained_once, tmp_path: Path) -> None:
    from llmcls.results.prediction_formats import write_lines

    labels = LabelSpace(["a", "b"], ["label"], "single_label_classification", ["a", "b"])
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4]], dtype=np.float32)
    predicted = np.array([[True, False], [True, False]])
    kept = predicted & (probabilities > 0.7)
    lines = prediction_lines(Predictions(["1", "2"], probabilities, predicted, None), labels, kept, probabilities > 0.3)
    write_lines(lines, tmp_path / "p.csv", labels, "csv")
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["labels"], row["unsure"], row["set"]) for row in rows] == [("a", "", "a"), ("", "a", "a|b")]


def test_a_run_without_validation_promises_nothing(trained, tmp_path: Path) -> None:
    run = RunFolder(trained.runs[0])
    run.predictions("validation").unlink()
    with pytest.raises(UserError, match="has no validation predictions"):
        decide(run, run.predictions("test"), tmp_path / "d.jsonl", "jsonl", 0.9, None)
