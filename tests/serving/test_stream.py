from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest

from llmcls.common.user_error import UserError
from llmcls.recipe.schema import Recipe
from llmcls.results.error_analysis import read_texts
from llmcls.results.finished_runs import FinishedRun, open_run
from llmcls.results.run_folder import RunFolder
from llmcls.serving.stream import classify_stream, json_rows, text_rows
from tests.conftest import Experiment
from tests.helpers import read_lines


@pytest.fixture
def runs(trained_once: Experiment) -> list[FinishedRun]:
    return [open_run(RunFolder(path)) for path in trained_once.runs]


def test_a_stream_is_answered_as_the_run_did_and_chunk_by_chunk(
    runs: list[FinishedRun], trained_once: Experiment
) -> None:
    texts = read_texts(runs[0].recipe, "test")
    read: list[str] = []
    rows = (read.append(row[0]) or row for row in zip(texts.ids, texts.texts, strict=True))
    lines = classify_stream(runs[:1], rows, chunk=8)
    found = [json.loads(next(lines)) for _ in range(9)]
    assert len(read) == 16
    for line, stored in zip(found, read_lines(trained_once.runs[0] / "predictions_test.jsonl"), strict=False):
        assert line["probabilities"] == pytest.approx(stored["probabilities"], abs=1e-6)
        assert (line["id"], line["labels"]) == (stored["id"], stored["labels"])


def test_several_runs_are_averaged(runs: list[FinishedRun], trained_once: Experiment) -> None:
    texts = read_texts(runs[0].recipe, "test")
    found = [json.loads(line) for line in classify_stream(runs, zip(texts.ids, texts.texts, strict=True))]
    stored = [read_lines(path / "predictions_test.jsonl") for path in trained_once.runs]
    for line, first, second in zip(found, *stored, strict=True):
        mean = np.mean([list(s["probabilities"].values()) for s in (first, second)], axis=0)
        assert list(line["probabilities"].values()) == pytest.approx(mean, abs=1e-5)
    other = replace(runs[1], labels=replace(runs[1].labels, columns=["x"]))
    with pytest.raises(UserError, match="has other labels"):
        next(classify_stream([runs[0], other], [("0", "a")]))


def test_lines_are_texts_numbered_from_zero() -> None:
    lines = io.BytesIO("\ufeffGröße\r\n\n{not json}".encode())
    assert list(text_rows(lines)) == [("0", "Größe"), ("1", ""), ("2", "{not json}")]
    with pytest.raises(UserError, match="line 2 is not UTF-8"):
        list(text_rows(io.BytesIO(b"a\n\xff\n")))


def test_objects_are_rows_of_the_recipe(runs: list[FinishedRun]) -> None:
    recipe = runs[0].recipe
    rows = [{"uid": 7, "title": " A ", "description": "b"}, {"uid": "x", "title": None, "description": "c", "more": 1}]
    lines = "\n".join(json.dumps(row) for row in rows) + "\n\n"
    assert list(json_rows(io.BytesIO(lines.encode()), recipe)) == [("7", "A\nb"), ("x", "c")]
    assert list(json_rows(io.BytesIO(b'{"title": "a", "description": ""}'), recipe)) == [("0", "a")]
    numbered: Recipe = replace(recipe, data=replace(recipe.data, id_column=None))
    assert [row_id for row_id, _ in json_rows(io.BytesIO(lines.encode()), numbered)] == ["0", "1"]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("a text", "line 1 is no JSON object; leave out --jsonl"),
        ("[1]", "line 1 is no JSON object"),
        ("[" * 100_000, "line 1 is no JSON object"),
        ('{"uid": 1, "title": "a"}', "line 1 has no 'description'"),
    ],
)
def test_what_is_no_row_is_named(line: str, sentence: str, runs: list[FinishedRun]) -> None:
    with pytest.raises(UserError, match=sentence):
        list(json_rows(io.BytesIO(line.encode()), runs[0].recipe))
