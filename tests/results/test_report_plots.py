from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from llmcls.data.labels import LabelSpace
from llmcls.recipe.load import load_recipe
from llmcls.results import report_plots
from llmcls.results.report_source import Source, read_seed
from llmcls.results.run_folder import RunFolder
from tests.results.helpers import MULTI, random_case, write_run


def test_each_seed_has_its_line_and_its_dot(write_recipe, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe())
    runs = [write_run(RunFolder(tmp_path / f"run_{n}"), recipe, {"test": random_case(n)}, seed=n + 5) for n in (0, 1)]
    source = Source(recipe, MULTI, [read_seed(run) for run in runs])
    found = report_plots.quality(source)
    assert found["confusion"] is None, "texts can have several labels"
    assert len(found["of_labels"]) == 2
    for chart in (found["precision_recall"], found["calibration"]):
        assert "seed 5" in chart
        assert "seed 6" in chart
        assert chart.count("<polyline") == 2
    loss = report_plots.curves(source)[0]
    assert loss.count("<polyline") == 2


def test_confusions_of_several_seeds_are_their_mean(write_recipe, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe())
    run = write_run(RunFolder(tmp_path / "run_0"), recipe, {"test": random_case(0)})
    one = read_seed(run)
    other = replace(one, metrics=one.metrics | {"test": one.metrics["test"] | {"confusions": []}})
    expected = one.metrics["test"]["confusions"]
    assert report_plots.confusions(Source(recipe, MULTI, [one])) == expected
    halved = report_plots.confusions(Source(recipe, MULTI, [one, other]))
    assert [row["rows"] for row in halved] == [row["rows"] / 2 for row in expected]


def test_of_very_many_classes_those_with_mistakes_are_shown(write_recipe, tmp_path: Path) -> None:
    names = [f"n{i}" for i in range(150)]
    labels = LabelSpace(names, ["c"], "single_label_classification", names)
    recipe = load_recipe(write_recipe(data__label_columns=["c"], model__problem_type=labels.problem_type))
    values = np.arange(150)
    probabilities = np.eye(150, dtype=np.float32)
    probabilities[120] = probabilities[130]
    run = write_run(RunFolder(tmp_path / "run_0"), recipe, {"test": (probabilities, values)}, labels=labels)
    found = report_plots.quality(Source(recipe, labels, [read_seed(run)]))["confusion"]
    assert (found["shown"], found["of"]) == (report_plots.SHOWN_CLASSES, 150)
    assert "n120, predicted n130: 1 rows" in found["picture"]
    assert len(re.findall('class="cell', found["picture"])) == 100


def test_curves_of_very_many_predictions_are_drawn_from_some(write_recipe, tmp_path: Path, monkeypatch) -> None:
    recipe = load_recipe(write_recipe())
    run = write_run(RunFolder(tmp_path / "run_0"), recipe, {"test": random_case(0)})
    monkeypatch.setattr(report_plots, "MOST_CELLS", 100)
    found = report_plots.quality(Source(recipe, MULTI, [read_seed(run)]))
    assert "all labels together, 50 of 200 texts" in found["precision_recall"]
    assert "Calibration, 50 of 200 texts" in found["calibration"]
