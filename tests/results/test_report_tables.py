from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmcls.common.files import write_json
from llmcls.data.labels import LabelSpace
from llmcls.recipe.load import load_recipe
from llmcls.results import report_tables
from llmcls.results.report_source import Source, read_seed
from llmcls.results.run_folder import RunFolder
from tests.results.helpers import MULTI, random_case, write_run

BINARY = LabelSpace(["no", "yes"], ["yes"], "binary_classification")


def source_of(write_recipe, folder: Path, labels: LabelSpace, case: tuple[np.ndarray, np.ndarray]) -> Source:
    recipe = load_recipe(write_recipe(data__label_columns=labels.columns, model__problem_type=labels.problem_type))
    run = write_run(RunFolder(folder / "run_0"), recipe, {"test": case}, labels=labels)
    return Source(recipe, labels, [read_seed(run)])


@pytest.fixture
def multi(write_recipe, tmp_path: Path) -> Source:
    return source_of(write_recipe, tmp_path, MULTI, random_case(0))


def test_a_binary_task_leads_with_its_positive_class_which_alone_has_a_threshold(write_recipe, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2, 80)
    probabilities = np.stack([1 - values, values], axis=1).astype(np.float32) * 0.8 + 0.1
    source = source_of(write_recipe, tmp_path, BINARY, (probabilities, values))
    found = report_tables.result(source)
    assert found["words"] == "F1 of the positive class"
    assert found["value"] == 1.0
    assert {row["name"]: row["threshold"] for row in report_tables.labels(source)} == {"no": None, "yes": 0.5}
    assert report_tables.facts(source) == ["yes or no for each text"]


def test_labels_are_sorted_by_their_rows(multi: Source) -> None:
    rows = report_tables.labels(multi)
    assert rows[0]["support"] >= rows[1]["support"]
    assert rows[0]["f1"] == multi.seeds[0].metrics["test"]["per_class"][rows[0]["name"]]["f1"]


def test_the_data_table_has_labels_per_text_and_the_rarest(multi: Source) -> None:
    multi.seeds[0].metrics["data"] = {"train": {"rows": 10, "labels": {"a": 12, "b": 3}}}
    row = report_tables.data(multi)[0]
    assert (row["per_text"], row["rarest"], row["file"]) == (1.5, ("b", 3), "train.csv")


def test_cost_is_in_gpu_hours_on_gpus_only(multi: Source) -> None:
    assert dict(report_tables.machine(multi))["cost"].startswith("0.000556 hours of processes")
    run = multi.seeds[0].folder
    write_json(run.environment, {"device": "NVIDIA A100", "processes": 8})
    again = Source(multi.recipe, multi.labels, [read_seed(run)])
    found = dict(report_tables.machine(again))
    assert found["cost"].startswith("0.00444 GPU hours")
    assert found["devices"] == "8 × NVIDIA A100"


def test_a_rule_of_thresholds_is_a_sentence() -> None:
    words = report_tables.threshold_words
    assert words({"rule": "fixed", "metric": None, "reason": None}) == "Thresholds: fixed, not tuned."
    tuned = {"rule": "per_class", "metric": "f1_macro", "reason": "0.7 against 0.6"}
    assert words(tuned) == "Thresholds: per class, tuned on validation for f1_macro (0.7 against 0.6)."
