from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcls.data.labels import LabelSpace
from llmcls.evaluation import scoring
from llmcls.prediction import resumable_predictions
from llmcls.prediction.resumable_predictions import ResumablePredictions
from llmcls.results.predictions import Predictions
from tests.helpers import predict, read_lines


def test_an_interrupted_prediction_resumes_where_it_stopped(
    trained, products: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained.runs[0]
    for module in (scoring, resumable_predictions):
        monkeypatch.setattr(module, "CHUNK_ROWS", 16)
    test, output = products / "test.csv", tmp_path / "p.jsonl"
    predict("--run", run, "--input", test, "--output", tmp_path / "whole.jsonl")
    written: list[int] = []
    real = ResumablePredictions.append

    def dying(self: Any, lines: Any, logits: Any) -> None:
        if len(written) == 2:
            # A half-written line, as a killed process leaves it.
            with self._lines.open("a", encoding="utf-8") as file:
                file.write('{"id": "P')
            raise KeyboardInterrupt
        written.append(len(logits))
        real(self, lines, logits)

    monkeypatch.setattr(ResumablePredictions, "append", dying)
    with pytest.raises(KeyboardInterrupt):
        predict("--run", run, "--input", test, "--output", output)
    assert not output.exists()
    resumed: list[int] = []

    def counting(self: Any, lines: Any, logits: Any) -> None:
        resumed.append(len(logits))
        real(self, lines, logits)

    monkeypatch.setattr(ResumablePredictions, "append", counting)
    predict("--run", run, "--input", test, "--output", output)
    assert written == [16, 16]
    assert resumed == [16, 13]
    assert output.read_text() == (tmp_path / "whole.jsonl").read_text()
    assert json.loads((tmp_path / "p.metrics.json").read_text()) == json.loads(
        (tmp_path / "whole.metrics.json").read_text()
    )


def test_partial_output_of_another_input_is_not_taken_for_this_one(tmp_path: Path) -> None:
    labels = LabelSpace(["a", "b"], ["a", "b"], "multi_label_classification")
    partial = ResumablePredictions(tmp_path / "p.jsonl", labels)
    assert partial.resume("one") == 0
    zeros = np.zeros((4096, 2), dtype=np.float32)
    partial.append(Predictions([str(i) for i in range(4096)], zeros, zeros > 0, None), zeros)
    assert ResumablePredictions(tmp_path / "p.jsonl", labels).resume("one") == 4096
    assert ResumablePredictions(tmp_path / "p.jsonl", labels).resume("other") == 0


LABELS = LabelSpace(["a", "b"], ["a", "b"], "multi_label_classification")
CHUNK = Predictions(["x", "y"], np.full((2, 2), 0.25, np.float32), np.ones((2, 2), bool), None)


def started(folder: Path) -> ResumablePredictions:
    """Predictions of which all rows are written."""
    folder.mkdir(exist_ok=True)
    partial = ResumablePredictions(folder / "p.jsonl", LABELS)
    assert partial.resume("signature") == 0
    partial.append(CHUNK, np.zeros((2, 2), np.float32))
    return partial


def test_predictions_that_were_killed_at_any_moment_of_their_end_are_complete(tmp_path: Path, monkeypatch) -> None:
    found: list[bool] = []
    for killed_at in range(1, 30):
        folder = tmp_path / str(killed_at)
        partial, operations = started(folder), itertools.count(1)

        def killed(real: Any, at: int = killed_at, operations: Any = operations) -> Any:
            def operation(*arguments: Any, **options: Any) -> Any:
                if next(operations) == at:
                    raise KeyboardInterrupt
                return real(*arguments, **options)

            return operation

        with monkeypatch.context() as patch:
            for owner, name in ((os, "replace"), (os, "fsync"), (Path, "unlink"), (Path, "write_text")):
                patch.setattr(owner, name, killed(getattr(owner, name)))
            try:
                partial.finish()
            except KeyboardInterrupt:
                pass
            else:
                break
        rows = ResumablePredictions(folder / "p.jsonl", LABELS).resume("signature")
        found.append(rows is None)
        if rows is None:
            assert [path.name for path in folder.iterdir() if not path.name.endswith(".partial")] == ["p.jsonl"]
            assert len(read_lines(folder / "p.jsonl")) == 2
        else:
            assert rows == 0
    # First its rows are predicted again; from some moment on it is complete, and stays so.
    assert found == sorted(found)
    assert any(found)


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_text("{}")], ids=["removed", "changed"])
def test_an_output_that_is_not_what_was_written_is_predicted_again(tmp_path: Path, monkeypatch, change: Any) -> None:
    partial = started(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda path, missing_ok=False: None)
        partial.finish()
    change(tmp_path / "p.jsonl")
    assert ResumablePredictions(tmp_path / "p.jsonl", LABELS).resume("signature") == 0


@pytest.mark.parametrize("state", ["", "[]", "{", '{"signature": 3}'])
def test_a_damaged_state_starts_again(tmp_path: Path, state: str) -> None:
    (tmp_path / "p.jsonl.partial.json").write_text(state)
    assert ResumablePredictions(tmp_path / "p.jsonl", LABELS).resume("signature") == 0
