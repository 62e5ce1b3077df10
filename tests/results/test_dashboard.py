from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmcls.common.files import write_json
from llmcls.data.labels import LabelSpace
from llmcls.recipe.load import load_recipe
from llmcls.results.dashboard import Dashboard, Table, dashboard_of, reference_values
from llmcls.results.run_folder import ExperimentFolder
from tests.helpers import read_json
from tests.results.helpers import write_run

CLASSES = LabelSpace(["a", "b", "c"], ["label"], "single_label_classification")


@pytest.fixture
def of_classes(write_recipe, tmp_path: Path) -> Dashboard:
    recipe = load_recipe(write_recipe(model__problem_type="single_label_classification", data__label_columns=["label"]))
    rng = np.random.default_rng(0)
    values = rng.integers(0, 3, 60)
    probabilities = rng.dirichlet(np.ones(3), 60) + 0.6 * np.eye(3)[values]
    probabilities = (probabilities / probabilities.sum(axis=1, keepdims=True)).astype(np.float32)
    split = {"test": (probabilities, values.astype(np.int64))}
    run = write_run(ExperimentFolder(tmp_path / "model" / "data").run(0), recipe, split, labels=CLASSES)
    return dashboard_of(run, recipe, CLASSES, read_json(run.metrics))


def test_classes_have_a_confusion_matrix_and_no_thresholds(of_classes: Dashboard) -> None:
    assert "figures/confusion" in of_classes.figures
    assert "tables/thresholds" not in of_classes.tables
    assert all(pixels.ndim == 3 and pixels.dtype == np.uint8 for pixels in of_classes.figures.values())
    # Something is drawn.
    assert all(len(np.unique(pixels)) > 2 for pixels in of_classes.figures.values())


def test_tables_say_what_the_metrics_say(of_classes: Dashboard, tmp_path: Path) -> None:
    metrics = read_json(tmp_path / "model" / "data" / "run_0" / "metrics.json")["test"]
    per_class = of_classes.tables["tables/per_class"]
    at = per_class.columns.index("f1")
    assert {row[0]: row[at] for row in per_class.rows} == {n: metrics["per_class"][n]["f1"] for n in "abc"}
    results = {row[0]: row[1] for row in of_classes.tables["tables/results"].rows}
    assert results["accuracy"] == metrics["accuracy"]
    assert sum(int(row[2] or 0) for row in of_classes.tables["tables/calibration"].rows) == 60
    (cells,) = of_classes.precision_recall.values()
    assert [len(part) for part in cells] == [180, 180]


def test_baselines_become_names_with_numbers(write_recipe, tmp_path: Path) -> None:
    experiment = ExperimentFolder(tmp_path)
    found = {"majority": {"test": {"f1_micro": 0.25, "per_class": {"a": {"f1": 1.0}}}, "seconds": 2.0}}
    write_json(experiment.baselines.metrics, {"groups": {}, "baselines": found})
    assert reference_values(experiment, load_recipe(write_recipe(exp__baselines=True))) == {
        "baselines/majority/test": {"f1_micro": 0.25}
    }
    assert reference_values(experiment, load_recipe(write_recipe(exp__baselines=False))) == {}


def test_a_markdown_table_keeps_one_row_a_line_and_texts_are_no_markup() -> None:
    table = Table(["id", "text"], [["1", "a|b\n<b>c"], [None, 0.25]])
    assert table.markdown() == "| id | text |\n| --- | --- |\n| 1 | a&#124;b &#60;b&#62;c |\n| – | 0.2500 |"
