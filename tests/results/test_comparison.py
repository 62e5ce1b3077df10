from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmcls.common.user_error import UserError
from llmcls.data.labels import LabelSpace
from llmcls.evaluation.tuning import Tuning
from llmcls.recipe.load import load_recipe
from llmcls.results.comparison import compare, compare_folders, comparison_lines
from llmcls.results.finished_runs import apply_retuned, open_run, retune
from llmcls.results.run_folder import ExperimentFolder
from tests.results.helpers import random_case, write_run


@pytest.fixture
def sides(write_recipe, tmp_path: Path) -> dict[str, ExperimentFolder]:
    """Two seeds of a good recipe, and two of a worse one."""
    found = {}
    for name, rate, noise in (("good", 1e-3, 0.3), ("worse", 1e-4, 0.6)):
        recipe = load_recipe(write_recipe(), [f"learning_rate={rate}"])
        found[name] = ExperimentFolder(tmp_path / name)
        for number in (0, 1):
            case = random_case(7 * number + int(100 * noise), noise=noise)
            write_run(found[name].run(number), recipe, {"validation": case, "test": case}, seed=number)
    return found


def lines_of(first: Path, second: Path, split: str | None = None) -> list[str]:
    return comparison_lines(first, second, compare_folders(first, second, split, 500))


def words(lines: list[str]) -> list[str]:
    return [line.rpartition("  ")[2] for line in lines if line.startswith(("f1_", "accuracy"))]


def test_a_clear_difference_is_better_or_worse(sides) -> None:
    good, worse = sides["good"].path, sides["worse"].path
    lines = lines_of(good, worse)
    assert lines[0] == f"test, 200 rows in both; A: {good} (2 run(s)), B: {worse} (2 run(s))"
    assert words(lines) == ["B is worse"] * 3
    assert words(lines_of(worse, good, "validation")) == ["B is better"] * 3


def test_seeds_of_one_recipe_differ_by_noise_only(sides) -> None:
    first, second = (sides["good"].run(i).path for i in (0, 1))
    lines = lines_of(first, second)
    assert words(lines) == ["noise"] * 3
    assert "same recipe on both sides" in lines[-1]


def test_a_single_seed_is_said(sides) -> None:
    lines = lines_of(sides["good"].run(0).path, sides["worse"].path)
    assert "not the choice of seed" in lines[-1]


def test_rows_are_matched_by_their_ids(sides, write_recipe, tmp_path: Path) -> None:
    probabilities, values = random_case(30)
    order = np.random.default_rng(0).permutation(len(values))
    recipe = load_recipe(write_recipe(), ["learning_rate=0.5"])
    one = write_run(ExperimentFolder(tmp_path / "one").run(0), recipe, {"test": (probabilities, values)})
    ids = [f"r{i}" for i in order]
    case = {"test": (probabilities[order], values[order])}
    shuffled = write_run(ExperimentFolder(tmp_path / "shuffled").run(0), recipe, case, ids=ids)
    found = compare([one], [shuffled], "test", 200, same=False)
    assert found.rows == 200
    assert all(v.first == v.second and v.low == v.high == 0 and v.word == "noise" for v in found.verdicts)
    assert all(a == b for a, b in found.label_f1)


def test_runs_that_cannot_be_compared_are_refused(sides, write_recipe, tmp_path: Path) -> None:
    good, recipe = sides["good"].path, load_recipe(write_recipe())

    def other(name: str, **changes) -> Path:
        case = {"test": random_case(0)} | changes.pop("splits", {})
        return write_run(ExperimentFolder(tmp_path / name).run(0), recipe, case, **changes).path

    with pytest.raises(UserError, match="neither a finished run folder nor a folder of runs"):
        lines_of(good, tmp_path / "nothing")
    fewer = other("fewer", splits={"test": random_case(0, rows=199)})
    with pytest.raises(UserError, match="predicted other test rows"):
        lines_of(good, fewer)
    relabelled = other("relabelled", splits={"test": (random_case(0)[0], 1 - random_case(0)[1])})
    with pytest.raises(UserError, match="has other true labels for the test rows"):
        lines_of(good, relabelled)
    renamed = other("renamed", labels=LabelSpace(["b", "a"], ["a", "b"], "multi_label_classification"))
    with pytest.raises(UserError, match="has other labels than"):
        lines_of(good, renamed)
    (other("unpredicted") / "predictions_test.jsonl").unlink()
    with pytest.raises(UserError, match="no split was predicted by all runs"):
        lines_of(good, tmp_path / "unpredicted" / "run_0")


def test_a_difference_of_rules_is_not_called_one_of_models(write_recipe, tmp_path: Path) -> None:
    probabilities, values = random_case(3)
    recipe = load_recipe(write_recipe())
    runs = [
        write_run(ExperimentFolder(tmp_path / name).run(0), load_recipe(write_recipe(), [f"learning_rate={rate}"]),
                  {"validation": random_case(4), "test": (probabilities, values)})
        for name, rate in (("tuned", 1e-3), ("plain", 1e-4))
    ]  # fmt: skip
    same = lines_of(runs[0].path, runs[1].path)
    assert same[1] == "thresholds: A 0.5; B 0.5"
    assert words(same) == ["noise"] * 3
    apply_retuned(open_run(runs[1]), retune(open_run(runs[1]), Tuning("fixed", fixed=0.01)))
    lines = lines_of(runs[0].path, runs[1].path)
    assert lines[1] == "thresholds: A 0.5; B 0.01"
    assert words(lines) == ["rules differ"] * 3 + ["noise"] * 3
    found = compare_folders(runs[0].path, runs[1].path, None, 500)
    assert found.verdicts[0].word == "B is worse", "with its own thresholds"
    assert all(v.first == v.second for v in found.of_models), "the probabilities are the same"
    assert "decide by different rules (0.5 and 0.01)" in lines[-2]
    assert recipe.train.thresholds == "auto"
    assert "joint for f1_micro" in found.remarks()[0]
