"""A run whose labels count as many, from training to mistakes, beside the same run whose labels count as few."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcls.check import main as check
from llmcls.compare import main as compare
from llmcls.data import marks
from llmcls.errors import main as errors
from llmcls.evaluation.metrics import evaluate_predictions
from llmcls.thresholds import main as thresholds
from tests.conftest import SHARED, Experiment, WriteRecipe
from tests.helpers import (
    assert_same_metrics,
    assert_same_predictions,
    metrics_of,
    predict,
    read_json,
    read_lines,
    refusal,
    train,
)


def test_a_run_with_many_labels_measures_what_the_dense_path_measures(
    trained_once: Experiment, write_recipe: WriteRecipe, products: Path, tmp_path: Path, log_lines: list[str],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(marks, "MANY_LABELS", 5)
    recipe = write_recipe(**SHARED | {"exp__seeds": [1], "train__top_labels": 6, "exp__baselines": True})
    run = train(recipe) / "run_0"
    assert any(line.startswith("10 labels: they are kept sparse") for line in log_lines)
    found, dense = metrics_of(run), metrics_of(trained_once.runs[0])
    for split in ("validation", "test"):
        for name in ("loss", "calibration_error"):
            assert found[split][name] == pytest.approx(dense[split][name], abs=1e-5), name
        # At 0.5 no text has more labels than are kept.
        expected = dense["at_half"][split]
        same = {name: value for name, value in expected.items() if name in found["at_half"][split]}
        assert len(same) == 14
        assert found["at_half"][split] == pytest.approx(same, abs=1e-6)
    lines = read_lines(run / "predictions_test.jsonl")
    assert {len(line["probabilities"]) for line in lines} == {6}
    known = {line["id"]: line for line in read_lines(trained_once.runs[0] / "predictions_test.jsonl")}
    for line in lines:
        values, every = line["probabilities"].values(), known[line["id"]]["probabilities"].values()
        assert list(values) == pytest.approx(sorted(every, reverse=True)[:6], abs=1e-6)
    hits = np.mean([next(iter(line["probabilities"])) in line["true"] for line in lines])
    assert found["test"]["precision_at_1"] == pytest.approx(hits)
    decided = np.array([[name in line["labels"] for name in found["labels"]] for line in lines])
    true = np.array([[name in line["true"] for name in found["labels"]] for line in lines], dtype=np.float32)
    again = evaluate_predictions(decided.astype(np.float32), true, decided, found["labels"])
    assert found["test"]["f1_micro"] == pytest.approx(again["f1_micro"])
    assert found["test"]["f1_macro"] == pytest.approx(again["f1_macro"])
    output = tmp_path / "p.jsonl"
    predict("--run", run, "--input", products / "test.csv", "--output", output)
    assert_same_predictions(output, run / "predictions_test.jsonl")
    assert_same_metrics(read_json(tmp_path / "p.metrics.json"), found["test"])
    predict("--run", run, "--text", "a novel", "--output", tmp_path / "text.jsonl")
    assert len(read_lines(tmp_path / "text.jsonl")[0]["probabilities"]) == 6
    errors(["--run", str(run)])
    report = (run / "report.html").read_text(encoding="utf-8")
    assert "band-table" in report
    baselines = read_json(run.parent / "baselines.json")["baselines"]
    assert baselines.keys() == {"majority", "tfidf_centroid"}
    assert "TF-IDF centroid" in (run.parent / "summary.md").read_text(encoding="utf-8")
    check([str(recipe)])
    assert any(line.startswith("labels of a training row: ") for line in log_lines)
    given = ["--run", run, "--input", output, "--output", tmp_path / "d.jsonl", "--coverage", "0.9"]
    assert "llmcls decide needs the probabilities of all labels" in refusal(capsys, "decide", *given)
    compare([str(run), str(run)])
    assert "B - A +0.0000" in capsys.readouterr().out
    thresholds(["--run", str(run), "--rule", "fixed", "--value", "0.3", "--apply"])
    assert "all labels" in capsys.readouterr().out
    for line in read_lines(run / "predictions_test.jsonl"):
        assert set(line["labels"]) == {name for name, value in line["probabilities"].items() if value >= 0.3}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train__thresholds": "per_class"}, "train.thresholds is per_class, but most of 10 labels have too few rows"),
        ({"train__metric_for_best_model": "average_precision_macro"}, "use precision_at_1 or f1_micro"),
        ({"train__calibration": "isotonic"}, "train.calibration is isotonic, which needs the scores of all 10 labels"),
        ({"model__head_init": "probe"}, "model.head_init is probe"),
    ],
)
def test_what_needs_few_labels_is_refused(
    write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str,
    changes: dict[str, Any],
) -> None:  # fmt: skip
    monkeypatch.setattr(marks, "MANY_LABELS", 5)
    assert words in refusal(capsys, "train", write_recipe(**changes))


def test_ranked_metrics_need_many_labels(write_recipe: WriteRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = refusal(capsys, "train", write_recipe(train__metric_for_best_model="precision_at_5"))
    assert "is precision_at_5, which is for tasks with thousands of labels; here are 10" in sentence
