from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmcls.common.files import write_json, write_text
from llmcls.common.user_error import UserError
from llmcls.data.labels import LabelSpace
from llmcls.evaluation.tuning import Tuning
from llmcls.recipe.load import load_recipe
from llmcls.results.finished_runs import apply_retuned, best_run, finished_runs, labels_of, open_run, retune, runs_in
from llmcls.results.predictions import read_predictions
from llmcls.results.run_folder import ExperimentFolder, RunFolder
from tests.helpers import assert_same_metrics, read_json
from tests.results.helpers import MULTI, random_case, write_run


@pytest.fixture
def experiment(write_recipe) -> ExperimentFolder:
    """The folder of the small recipe's results, still empty."""
    return ExperimentFolder.of(load_recipe(write_recipe()))


def test_a_run_is_opened_with_its_recipe_labels_and_precision(experiment: ExperimentFolder, write_recipe) -> None:
    run = write_run(experiment.run(0), load_recipe(write_recipe()), {"test": random_case(0)}, seed=5)
    found = open_run(run)
    assert found.labels == MULTI
    assert found.recipe.exp.seeds == [5]
    assert found.mixed_precision is None
    write_json(run.environment, {"mixed_precision": "bf16"})
    assert open_run(run).mixed_precision == "bf16"
    assert open_run(run, base_model="elsewhere/model").recipe.model.model_name == "elsewhere/model"


def test_what_is_no_finished_run_is_refused(experiment: ExperimentFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        open_run(RunFolder(tmp_path / "empty"))
    run = experiment.run(0)
    write_text(run.recipe, "data: {}")
    with pytest.raises(UserError, match="was started but not finished"):
        labels_of(run)


def test_runs_are_in_the_order_of_their_seeds(experiment: ExperimentFolder, write_recipe) -> None:
    for number in (10, 9, 2):
        write_run(experiment.run(number), load_recipe(write_recipe()), {"test": random_case(0)})
    (experiment.run(3).path).mkdir()
    assert [run.path.name for run in runs_in(experiment.path)] == ["run_2", "run_9", "run_10"]
    assert runs_in(experiment.run(9).path) == [experiment.run(9)]


def test_a_folder_without_a_finished_run_is_refused(write_recipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a finished run folder nor a folder of runs"):
        runs_in(tmp_path)
    path = write_recipe()
    with pytest.raises(UserError, match=r"no finished run of .*recipe\.yaml"):
        finished_runs(load_recipe(path))


@pytest.mark.parametrize("metric, best", [("f1_micro", 1), ("loss", 2), ("hamming_loss", 0)])
def test_the_best_run_has_the_best_validation_metric(experiment, write_recipe, metric: str, best: int) -> None:
    values = [
        {"f1_micro": 0.5, "loss": 0.3, "hamming_loss": 0.1},
        {"f1_micro": 0.7, "loss": 0.4, "hamming_loss": 0.2},
        {"f1_micro": 0.6, "loss": 0.2, "hamming_loss": 0.3},
    ]
    for number, validation in enumerate(values):
        # Test decides nothing.
        test = {name: -value for name, value in validation.items()}
        write_json(experiment.run(number).metrics, {"validation": validation, "test": test})
    recipe = load_recipe(write_recipe(), [f"metric_for_best_model={metric}"])
    assert best_run(recipe) == experiment.run(best)


def test_without_validation_the_first_run_is_the_best(experiment: ExperimentFolder, write_recipe) -> None:
    for number in (0, 1):
        write_json(experiment.run(number).metrics, {"test": {"f1_micro": float(number)}})
    assert best_run(load_recipe(write_recipe())) == experiment.run(0)


def test_retuning_rewrites_thresholds_decisions_and_metrics(experiment: ExperimentFolder, write_recipe) -> None:
    case = {"validation": random_case(0), "test": random_case(1)}
    run = write_run(experiment.run(0), load_recipe(write_recipe()), case)
    before = read_json(run.metrics)
    retuned = retune(open_run(run), Tuning("fixed", fixed=0.01))
    assert (retuned.before.values, retuned.after.values) == ([0.5, 0.5], [0.01, 0.01])
    assert read_json(run.metrics) == before, "nothing is written yet"
    apply_retuned(open_run(run), retuned)
    assert read_json(run.thresholds)["values"] == {"a": 0.01, "b": 0.01}
    for split, (probabilities, values) in case.items():
        assert read_predictions(run.predictions(split), MULTI).predicted.tolist() == (probabilities >= 0.01).tolist()
        old, new = retuned.changes[split]
        assert old["f1_micro"] == before[split]["f1_micro"] > new["f1_micro"]
        assert new["recall_micro"] == 1.0
        assert read_json(run.metrics)[split] == new
        assert new["loss"] == old["loss"], "the loss does not depend on thresholds"
        assert len(values) == 200
    apply_retuned(open_run(run), retune(open_run(run), Tuning("fixed")))
    after = read_json(run.metrics)
    for split in case:
        assert_same_metrics(after[split], before[split])


def test_tuning_needs_validation_predictions(experiment: ExperimentFolder, write_recipe) -> None:
    run = write_run(experiment.run(0), load_recipe(write_recipe()), {"test": random_case(0)})
    with pytest.raises(UserError, match=r"has no predictions_validation\.jsonl to tune on; use --rule fixed"):
        retune(open_run(run), Tuning("per_class"))


def test_classes_have_no_thresholds_to_tune(experiment: ExperimentFolder, write_recipe) -> None:
    names = ["a", "b", "c"]
    labels = LabelSpace(names, ["c"], "single_label_classification", names)
    case = {"validation": (np.full((4, 3), 1 / 3, dtype=np.float32), np.array([0, 1, 2, 0]))}
    run = write_run(experiment.run(0), load_recipe(write_recipe()), case, labels=labels)
    with pytest.raises(UserError, match="the most probable one is taken, without thresholds"):
        retune(open_run(run), Tuning("fixed"))


def test_lost_thresholds_are_made_again(experiment: ExperimentFolder, write_recipe) -> None:
    run = write_run(experiment.run(0), load_recipe(write_recipe()), {"validation": random_case(0)})
    run.thresholds.unlink()
    retuned = retune(open_run(run), Tuning("fixed"))
    assert retuned.before is None
    apply_retuned(open_run(run), retuned)
    assert read_json(run.thresholds)["values"] == {"a": 0.5, "b": 0.5}
