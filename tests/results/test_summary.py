from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from llmcls.common.files import write_json
from llmcls.recipe.load import load_recipe
from llmcls.recipe.metric_names import POSITIVE_METRICS, RANKED_METRICS
from llmcls.results.run_folder import ExperimentFolder, RunFolder
from llmcls.results.summary import SUMMARY_METRICS, render_summary, write_summary
from tests.conftest import Experiment
from tests.helpers import read_json
from tests.results.helpers import random_case, write_run


@pytest.fixture
def experiment(write_recipe) -> ExperimentFolder:
    recipe = load_recipe(write_recipe())
    experiment = ExperimentFolder.of(recipe)
    for number, seed in enumerate((3, 5, 8)):
        cases = {"validation": random_case(seed), "test": random_case(seed + 100)}
        write_run(experiment.run(number), recipe, cases, seed)
    return experiment


def runs_of(experiment: ExperimentFolder, *numbers: int) -> list[RunFolder]:
    return [experiment.run(number) for number in numbers]


def test_mean_and_sample_deviation_over_seeds(experiment: ExperimentFolder) -> None:
    text = write_summary(experiment, runs_of(experiment, 0, 1, 2))
    summary = read_json(experiment.summary_json)
    assert summary["seeds"] == [3, 5, 8]
    assert summary["runs"] == ["run_0", "run_1", "run_2"]
    values = [read_json(run.metrics)["test"]["f1_micro"] for run in runs_of(experiment, 0, 1, 2)]
    found = summary["test"]["f1_micro"]
    assert found == {"mean": statistics.fmean(values), "std": statistics.stdev(values), "values": values}
    at_half = {"f1_micro at 0.5", "f1_macro at 0.5"}
    assert set(summary["validation"]) == set(SUMMARY_METRICS) - {*POSITIVE_METRICS, *RANKED_METRICS} | at_half
    each = " | ".join(f"{v:.4f}" for v in values)
    assert f"| f1_micro | {found['mean']:.4f} | {found['std']:.4f} | {each} |" in text
    assert "# tiny-llama / products" in text
    assert experiment.summary.read_text(encoding="utf-8") == text


def test_thresholds_are_named_beside_the_values_at_one_half(experiment: ExperimentFolder) -> None:
    text = write_summary(experiment, runs_of(experiment, 0, 1))
    assert "Thresholds" not in text, "nothing was tuned"
    metrics = read_json(experiment.run(0).metrics)
    metrics["thresholds"] = {"rule": "joint", "metric": "f1_micro", "reason": "f1_micro 0.7 in 5-fold, 0.6 at 0.5"}
    metrics["at_half"]["test"]["f1_micro"] = 0.1234
    write_json(experiment.run(0).metrics, metrics)
    text = write_summary(experiment, runs_of(experiment, 0))
    assert "| f1_micro at 0.5 | 0.1234 |  | 0.1234 |" in text
    assert "Thresholds of seed 3: joint for f1_micro (f1_micro 0.7 in 5-fold, 0.6 at 0.5)" in text


def test_the_name_of_a_data_set_is_no_markup(write_recipe, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(data__dataset_name="<img src=x onerror=alert(1)>"))
    experiment = ExperimentFolder.of(recipe)
    write_run(experiment.run(0), recipe, {"test": random_case(3)}, 3)
    text = write_summary(experiment, runs_of(experiment, 0))
    assert "<img" not in text
    assert text.startswith("# tiny-llama / &#60;img src=x onerror=alert(1)&#62;\n")


def test_one_seed_has_no_deviation(experiment: ExperimentFolder) -> None:
    text = write_summary(experiment, runs_of(experiment, 1))
    assert read_json(experiment.summary_json)["test"]["f1_micro"]["std"] is None
    assert "| test | mean | std | seed 5 |" in text


def test_a_metric_or_split_that_a_seed_lacks_is_left_out(experiment: ExperimentFolder) -> None:
    metrics = read_json(experiment.run(1).metrics)
    metrics["test"]["average_precision_macro"] = None
    del metrics["validation"]
    write_json(experiment.run(1).metrics, metrics)
    write_summary(experiment, runs_of(experiment, 0, 1))
    summary = read_json(experiment.summary_json)
    assert "validation" not in summary
    assert "average_precision_macro" not in summary["test"]


def test_training_metrics_stand_for_missing_splits(experiment: ExperimentFolder) -> None:
    metrics = read_json(experiment.run(0).metrics)
    metrics = {"train": metrics["test"]} | {k: v for k, v in metrics.items() if k not in ("validation", "test")}
    write_json(experiment.run(0).metrics, metrics)
    assert "| train | mean |" in write_summary(experiment, runs_of(experiment, 0))


def test_a_summary_is_rendered_again_with_its_baselines(trained: Experiment) -> None:
    experiment = ExperimentFolder(trained.folder)
    before = experiment.summary.read_text(encoding="utf-8")
    assert "TF-IDF + linear" in before
    experiment.summary.unlink()
    assert render_summary([RunFolder(run) for run in trained.runs]) == experiment.summary
    assert experiment.summary.read_text(encoding="utf-8") == before
