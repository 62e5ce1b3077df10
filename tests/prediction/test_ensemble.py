from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmcls.common.files import read_json, write_json
from llmcls.common.user_error import UserError
from llmcls.prediction import ensemble
from llmcls.results.run_folder import RunFolder
from llmcls.results.seal import reseal
from tests.helpers import predict, read_lines


def test_an_ensemble_is_the_mean_of_its_seeds(trained, products: Path, tmp_path: Path) -> None:
    source = products / "test.csv"
    predict("--run", *trained.runs, "--input", source, "--output", tmp_path / "runs.jsonl")
    predict("--recipe", trained.recipe, "--ensemble", "--input", source, "--output", tmp_path / "all.jsonl")
    assert (tmp_path / "runs.jsonl").read_bytes() == (tmp_path / "all.jsonl").read_bytes()
    lines = read_lines(tmp_path / "all.jsonl")
    each = [read_lines(run / "predictions_test.jsonl") for run in trained.runs]
    thresholds = [read_json(run / "thresholds.json")["values"] for run in trained.runs]
    assert len(lines) == 61
    for row, *members in zip(lines, *each, strict=True):
        for name, value in row["probabilities"].items():
            assert value == pytest.approx(sum(m["probabilities"][name] for m in members) / 2, abs=1e-6)
            cut = sum(t[name] for t in thresholds) / 2
            if abs(value - cut) > 1e-6:
                assert (name in row["labels"]) == (value > cut)
    assert not list(tmp_path.glob("*.members"))
    assert "f1_micro" in read_json(tmp_path / "all.metrics.json")


def test_an_interrupted_ensemble_does_not_predict_a_finished_member_again(
    trained, products: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--run", *trained.runs, "--input", products / "test.csv", "--output", tmp_path / "p.jsonl"]
    real, predicted = ensemble.predict_table, []

    def stops_after(limit: int):
        def table(run, *rest):
            if len(predicted) == limit:
                raise KeyboardInterrupt
            predicted.append(run.folder.path.name)
            return real(run, *rest)

        return table

    monkeypatch.setattr(ensemble, "predict_table", stops_after(1))
    with pytest.raises(KeyboardInterrupt):
        predict(*arguments)
    assert not (tmp_path / "p.jsonl").exists()
    monkeypatch.setattr(ensemble, "predict_table", stops_after(9))
    predict(*arguments)
    assert predicted == ["run_0", "run_1"]
    assert len(read_lines(tmp_path / "p.jsonl")) == 61


def test_runs_with_other_labels_are_refused(trained, products: Path, tmp_path: Path) -> None:
    path = trained.runs[1] / "model" / "labels.json"
    saved = json.loads(path.read_text())
    saved["names"][0], saved["columns"][0] = "novels", "novels"
    write_json(path, saved)
    reseal(RunFolder(trained.runs[1]), [path])
    with pytest.raises(UserError, match=r"run_1 has other labels than .*run_0; an ensemble needs runs with the same"):
        predict("--run", *trained.runs, "--input", products / "test.csv", "--output", tmp_path / "p.jsonl")
