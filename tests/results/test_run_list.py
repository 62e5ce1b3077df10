from __future__ import annotations

from pathlib import Path

import pytest

from llmcls.common.user_error import UserError
from llmcls.recipe.load import load_recipe
from llmcls.results.lock import locked
from llmcls.results.run_folder import ExperimentFolder
from llmcls.results.run_list import list_lines, list_runs
from llmcls.results.summary import write_summary
from tests.helpers import read_json
from tests.results.helpers import random_case, write_run


@pytest.fixture
def root(write_recipe, tmp_path: Path) -> Path:
    """Three experiments: two seeds, a worse single one, and one that was started only."""
    recipe = load_recipe(write_recipe())
    for name, noise, seeds in (("good", 0.3, (1, 2)), ("worse", 0.9, (1,))):
        experiment = ExperimentFolder(tmp_path / "out" / "model" / name)
        runs = []
        for number, seed in enumerate(seeds):
            case = random_case(seed, noise=noise)
            runs.append(write_run(experiment.run(number), recipe, {"validation": case, "test": case}, seed=seed))
        write_summary(experiment, runs)
    started = ExperimentFolder(tmp_path / "out" / "model" / "begun").run(0).recipe
    started.parent.mkdir(parents=True)
    started.write_text(ExperimentFolder(tmp_path / "out" / "model" / "good").run(0).recipe.read_text())
    return tmp_path / "out"


def test_the_best_is_first_and_what_did_not_finish_last(root: Path) -> None:
    found = list_runs(root)
    assert [one.folder.name for one in found] == ["good", "worse", "begun"]
    good, worse, begun = found
    summary = read_json(good.folder / "summary.json")
    assert good.test == summary["test"]["f1_micro"]["mean"]
    assert good.interval == summary["intervals"]["f1_micro"]
    assert good.interval[0] < good.test < good.interval[1]
    assert worse.interval == read_json(worse.folder / "run_0" / "metrics.json")["test"]["intervals"]["f1_micro"]
    assert (good.finished, good.state, good.seconds) == (2, "finished", 4.0)
    assert (begun.finished, begun.started, begun.state, begun.test) == (0, 1, "interrupted", None)


def test_a_training_that_holds_its_lock_is_running(root: Path) -> None:
    experiment = ExperimentFolder(root / "model" / "begun")
    with locked(experiment.lock, "the experiment"):
        assert list_runs(root)[-1].state == "running"
    assert list_runs(root)[-1].state == "interrupted"


def test_the_list_is_a_table_for_each_task(root: Path) -> None:
    lines = list_lines(list_runs(root), root)
    assert lines[0] == "products, micro-F1:"
    assert lines[1].split() == ["validation", "test", "95", "%", "interval", "seeds", "state", "time", "experiment"]
    assert lines[2].split()[0] == "1"
    assert lines[2].endswith("4 s   model/good")
    assert " 0 of 1 " in lines[4]
    assert "interrupted" in lines[4]
    assert list_lines(list_runs(root, "hamming_loss"), root)[0] == "products, Hamming loss:"
    assert [one.folder.name for one in list_runs(root, "hamming_loss")][:2] == ["good", "worse"], "less is better"


def test_a_damaged_recipe_does_not_hide_the_others(root: Path) -> None:
    (root / "model" / "begun" / "run_0" / "recipe.yaml").write_text("data: [")
    assert [one.folder.name for one in list_runs(root)] == ["good", "worse"]


def test_a_folder_without_runs_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no runs; name the folder of exp\.output_root"):
        list_runs(tmp_path)
