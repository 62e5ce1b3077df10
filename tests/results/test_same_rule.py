from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmcls.data.labels import LabelSpace
from llmcls.evaluation.thresholds import Thresholds, fixed_thresholds, save_thresholds
from llmcls.recipe.load import load_recipe
from llmcls.results.predictions import read_predictions
from llmcls.results.run_folder import RunFolder
from llmcls.results.same_rule import decide_by, rule_of, same_rule
from tests.results.helpers import MULTI, random_case, write_run


@pytest.fixture
def runs(write_recipe, tmp_path: Path) -> list[RunFolder]:
    recipe = load_recipe(write_recipe())
    case = {"validation": random_case(0), "test": random_case(1)}
    return [write_run(RunFolder(tmp_path / f"run_{n}"), recipe, case) for n in (0, 1)]


def test_rules_are_named_each_once(runs: list[RunFolder]) -> None:
    assert rule_of(runs, MULTI) == "0.5"
    save_thresholds(runs[0].thresholds, Thresholds("per_class", [0.2, 0.4], True, "f1_macro"), MULTI.names)
    save_thresholds(runs[1].thresholds, fixed_thresholds(2, 0.3), MULTI.names)
    assert rule_of(runs, MULTI) == "0.3 / per class for f1_macro, at least one label" == rule_of(runs[::-1], MULTI)
    classes = LabelSpace(["a", "b"], ["c"], "single_label_classification", ["a", "b"])
    assert rule_of(runs, classes) == "most probable class"


def test_the_same_rule_is_tuned_on_the_validation_rows_of_each_run(runs: list[RunFolder]) -> None:
    words, tuning = same_rule(runs, MULTI)
    assert words == "joint for f1_micro"
    found = read_predictions(runs[0].predictions("test"), MULTI)
    decided = decide_by(runs[0], found, MULTI, tuning)
    assert not np.array_equal(decided, found.predicted), "0.5 decided before"
    runs[1].predictions("validation").unlink()
    assert same_rule(runs, MULTI) == ("0.5", None)
    assert np.array_equal(decide_by(runs[0], found, MULTI, None), found.predicted)
