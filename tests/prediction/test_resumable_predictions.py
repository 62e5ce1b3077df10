from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcls.data.labels import LabelSpace
from llmcls.evaluation import scoring
from llmcls.prediction import resumable_predictions
from llmcls.prediction.resumable_predictions import ResumablePredictions
from llmcls.results.predictions import Predictions
from tests.helpers import predict


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
