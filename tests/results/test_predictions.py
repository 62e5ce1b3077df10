from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llmcls.common.user_error import UserError
from llmcls.data.labels import LabelSpace, multi_hot
from llmcls.evaluation.outcome import Evaluation
from llmcls.results import predictions
from llmcls.results.predictions import (
    Predictions,
    prediction_lines,
    read_decisions,
    read_prediction_chunks,
    read_predictions,
    rewrite_decisions,
    write_predictions,
)
from tests.helpers import read_lines
from tests.results.helpers import make_split

NAMES = ["Bücher", "music", "a/b"]
PROBLEMS = {
    "multi": LabelSpace(NAMES, NAMES, "multi_label_classification"),
    "single": LabelSpace(NAMES, ["kind"], "single_label_classification", NAMES),
    "binary": LabelSpace(["not_x", "x"], ["x"], "binary_classification"),
}


def make(labels: LabelSpace, rows: int = 10, labelled: bool = True) -> tuple[Predictions, Evaluation]:
    """Random predictions, and the same as an evaluation."""
    rng, count = np.random.default_rng(0), len(labels.names)
    probabilities = rng.random((rows, count), dtype=np.float32)
    if labels.multi_label:
        predicted, true = probabilities >= 0.5, (rng.random((rows, count)) < 0.5).astype(np.float32)
    else:
        predicted, true = multi_hot(probabilities.argmax(1), count), rng.integers(0, count, rows)
    ids = [f"r{i}" for i in range(rows)]
    return Predictions(ids, probabilities, predicted, true if labelled else None), Evaluation(
        probabilities, predicted, {}
    )


@pytest.mark.parametrize("labelled", [True, False], ids=["labelled", "unlabelled"])
@pytest.mark.parametrize("labels", PROBLEMS.values(), ids=PROBLEMS)
def test_what_is_written_is_read_back(tmp_path: Path, labels: LabelSpace, labelled: bool) -> None:
    path = tmp_path / "p.jsonl"
    expected, evaluation = make(labels, labelled=labelled)
    write_predictions(path, make_split(expected.true, 10), evaluation, labels)
    found = read_predictions(path, labels)
    assert found.ids == expected.ids
    assert len(found) == 10
    # Nine decimals are written.
    assert np.abs(found.probabilities - expected.probabilities).max() < 1e-8
    assert np.array_equal(found.predicted, expected.predicted)
    if labelled:
        assert np.array_equal(found.known_true, expected.known_true)
        assert found.known_true.dtype == expected.known_true.dtype
        assert np.array_equal(found.true_marks(labels), multi_hot(expected.known_true, len(labels.names)))
        true, predicted = read_decisions(path, labels)
        assert np.array_equal(true, found.true_marks(labels))
        assert np.array_equal(predicted, expected.predicted)
    else:
        assert found.true is None
        with pytest.raises(ValueError, match="without true labels"):
            _ = found.known_true


def test_a_line_is_what_the_documentation_says(tmp_path: Path) -> None:
    values = np.array([[0.25, 0.75, 0.5]], dtype=np.float32)
    one = Predictions(["7"], values, values >= 0.5, np.array([[1, 0, 0]], dtype=np.float32))
    (line,) = prediction_lines(one, PROBLEMS["multi"])
    assert line == (
        '{"id": "7", "probabilities": {"Bücher": 0.25, "music": 0.75, "a/b": 0.5}, '
        '"labels": ["music", "a/b"], "true": ["Bücher"]}\n'
    )


def test_a_file_is_read_and_written_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, labels = tmp_path / "p.jsonl", PROBLEMS["multi"]
    expected, evaluation = make(labels)
    monkeypatch.setattr(predictions, "CHUNK_ROWS", 4)
    write_predictions(path, make_split(expected.true, 10), evaluation, labels)
    assert [line["id"] for line in read_lines(path)] == expected.ids
    chunks = list(read_prediction_chunks(path, labels, 4))
    assert [chunk.ids for chunk in chunks] == [expected.ids[:4], expected.ids[4:8], expected.ids[8:]]
    assert np.array_equal(np.concatenate([chunk.predicted for chunk in chunks]), expected.predicted)


@pytest.mark.parametrize("labels", PROBLEMS.values(), ids=PROBLEMS)
def test_rewriting_decisions_changes_nothing_else(tmp_path: Path, labels: LabelSpace) -> None:
    path = tmp_path / "p.jsonl"
    expected, evaluation = make(labels)
    write_predictions(path, make_split(expected.true, 10), evaluation, labels)
    before = path.read_bytes()
    rewrite_decisions(path, ~expected.predicted, labels)
    assert np.array_equal(read_predictions(path, labels).predicted, ~expected.predicted)
    for old, new in zip(before.decode().splitlines(), read_lines(path), strict=True):
        assert json.loads(old) | {"labels": None} == new | {"labels": None}
    rewrite_decisions(path, expected.predicted, labels)
    assert path.read_bytes() == before


def test_too_few_decisions_leave_the_file_unchanged(tmp_path: Path) -> None:
    path, labels = tmp_path / "p.jsonl", PROBLEMS["multi"]
    expected, evaluation = make(labels)
    write_predictions(path, make_split(expected.true, 10), evaluation, labels)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="shorter"):
        rewrite_decisions(path, expected.predicted[:9], labels)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["p.jsonl"]


def test_a_split_that_was_not_predicted_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run_0 has no predictions_test\.jsonl"):
        read_predictions(tmp_path / "run_0" / "predictions_test.jsonl", PROBLEMS["multi"])
