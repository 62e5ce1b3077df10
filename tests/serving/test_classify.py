from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from llmcls.results.finished_runs import open_run
from llmcls.results.run_folder import RunFolder
from llmcls.serving.classify import Model, main, read_texts
from llmcls.serving.export import ExportOptions, write_export
from tests.conftest import Experiment
from tests.helpers import read_lines


@pytest.fixture(scope="module")
def exported(trained_once: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    write_export(open_run(RunFolder(trained_once.runs[0])), folder, ExportOptions())
    return folder


def test_plain_lines_and_empty_texts_are_classified(exported: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "texts.txt").write_text("A novel\n\na kettle\n", encoding="utf-8")
    arguments = [str(tmp_path / "texts.txt"), str(tmp_path / "out.jsonl"), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["classify.py", *arguments])
    monkeypatch.setattr("llmcls.serving.classify.HERE", exported)
    main()
    lines = read_lines(tmp_path / "out.jsonl")
    assert [line["id"] for line in lines] == ["0", "1", "2"]
    assert all(0 <= p <= 1 for line in lines for p in line["probabilities"].values())


def test_white_space_at_the_ends_of_a_text_changes_nothing(exported: Path) -> None:
    model = Model(exported)
    plain, spaced = model.probabilities(["A novel of cats", " A novel of cats \n"])
    assert np.array_equal(plain, spaced)


def test_rows_of_jsonl_keep_their_ids(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text(json.dumps({"id": 7, "text": "a\nb"}) + "\n" + json.dumps({"text": "c"}) + "\n", encoding="utf-8")
    assert list(read_texts(file)) == [("7", "a\nb"), ("1", "c")]


def decided(model: Model, probabilities: list[list[float]], **decisions: object) -> list[list[str]]:
    model.decisions = {"binary": False, "at_least_one": False, "implies": {}} | decisions
    return model.labels(np.array(probabilities))


def test_every_rule_of_decision_is_applied() -> None:
    model = object.__new__(Model)
    model.names, model.multi_label = ["a", "a/b", "c"], True
    thresholds = {"a": 0.5, "a/b": 0.4, "c": 0.9}
    rows = [[0.1, 0.45, 0.2], [0.45, 0.1, 0.2]]
    assert decided(model, rows, thresholds=thresholds) == [["a/b"], []]
    assert decided(model, rows, thresholds=thresholds, at_least_one=True) == [["a/b"], ["a"]]
    assert decided(model, rows, thresholds=thresholds, implies={"a/b": ["a"]})[0] == ["a", "a/b"]
    model.names, model.multi_label = ["no", "yes"], False
    half = {"no": 0.5, "yes": 0.3}
    assert decided(model, [[0.6, 0.4], [0.8, 0.2]], thresholds=half, binary=True) == [["yes"], ["no"]]
    assert decided(model, [[0.6, 0.4]], thresholds=half) == [["no"]]
