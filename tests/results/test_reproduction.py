from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from llmcls.recipe.load import load_recipe
from llmcls.results.reproduction import changed_surroundings, compare_runs, new_place, outcome_lines
from llmcls.results.run_folder import RunFolder
from tests.conftest import Experiment

pytestmark = pytest.mark.slow


@pytest.fixture
def other(trained_once: Experiment, tmp_path: Path) -> RunFolder:
    """A copy of a run."""
    return RunFolder(Path(shutil.copytree(trained_once.runs[0], tmp_path / "other")))


def test_a_copy_is_equal_to_the_last_bit(trained_once: Experiment, other: RunFolder) -> None:
    metrics = json.loads(other.metrics.read_text(encoding="utf-8"))
    metrics["training"]["seconds"] += 1
    other.metrics.write_text(json.dumps(metrics), encoding="utf-8")
    outcome = compare_runs(RunFolder(trained_once.runs[0]), other)
    assert (outcome.differences, outcome.largest) == ([], {})
    assert list(outcome.compared) == ["weights", "metrics", "predictions_validation", "predictions_test"]
    assert all(line.endswith(", equal to the last bit") for line in outcome_lines(outcome))


def test_each_difference_is_named_with_its_size(trained_once: Experiment, other: RunFolder) -> None:
    weights = load_file(other.model / "adapter_model.safetensors")
    name = sorted(weights)[0]
    weights[name].view(-1)[3] += 0.25
    save_file(weights, other.model / "adapter_model.safetensors")
    metrics = json.loads(other.metrics.read_text(encoding="utf-8"))
    metrics["test"]["loss"] += 0.5
    other.metrics.write_text(json.dumps(metrics), encoding="utf-8")
    lines = other.predictions("test").read_text(encoding="utf-8").splitlines()
    line = json.loads(lines[7])
    line["probabilities"]["books"] += 0.125
    line["labels"] = ["pets"]
    lines[7] = json.dumps(line)
    other.predictions("test").write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
    outcome = compare_runs(RunFolder(trained_once.runs[0]), other)
    assert outcome.differences == [
        f"weights: {name} differs by 0.25",
        "metrics: test/loss differs by 0.5",
        "predictions_test: row 61 is not there, or of another kind",
        f"predictions_test: {line['id']}, with other labels, differs by 0.125",
    ]
    assert outcome.largest["weights"] == pytest.approx(0.25)
    assert "predictions_validation: 40 rows, equal to the last bit" in outcome_lines(outcome)


def test_what_a_run_did_not_note_is_said(trained_once: Experiment) -> None:
    then = {"packages": {"torch": "1", "peft": "2"}, "python": "3.11", "threads": 1}
    assert changed_surroundings(then, {"packages": {"torch": "1", "peft": "3"}, "python": "3.11", "git": None}) == [
        "packages peft: 2 then, 3 now",
        "git: none now; the run did not note it",
    ]


def test_the_place_is_beside_the_run_also_if_it_was_copied(trained_once: Experiment, other: RunFolder) -> None:
    run = RunFolder(trained_once.runs[1])
    recipe = load_recipe(run.recipe)
    assert new_place(run, recipe).run.path == trained_once.folder / "run_1-again" / "run_0"
    named = replace(recipe, exp=replace(recipe.exp, run_name="a"))
    beside = RunFolder(trained_once.folder / "a" / "run_0")
    assert new_place(beside, named).run.path == trained_once.folder / "a-run_0-again" / "run_0"
    assert other.path.parent in new_place(other, recipe).run.path.parents
