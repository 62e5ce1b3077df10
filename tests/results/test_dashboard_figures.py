from __future__ import annotations

import numpy as np

from llmcls.data.labels import LabelSpace
from llmcls.recipe.load import load_recipe
from llmcls.results.dashboard_figures import SHOWN_CLASSES, figures_of
from llmcls.results.report_source import Source, read_seed
from llmcls.results.run_folder import ExperimentFolder
from tests.results.helpers import random_case, write_run


def test_labels_have_curves_and_calibration_but_no_confusion_matrix(write_recipe, tmp_path) -> None:
    recipe = load_recipe(write_recipe())
    run = write_run(ExperimentFolder(tmp_path).run(0), recipe, {"test": random_case(0)})
    labels = LabelSpace(["a", "b"], ["a", "b"], "multi_label_classification")
    found = figures_of(Source(recipe, labels, [read_seed(run)]))
    assert set(found) == {"figures/against_baselines", "figures/precision_recall", "figures/calibration"}


def test_of_many_classes_a_readable_part_is_drawn(write_recipe, tmp_path) -> None:
    names = [f"class {i}" for i in range(SHOWN_CLASSES + 20)]
    labels = LabelSpace(names, ["label"], "single_label_classification")
    recipe = load_recipe(write_recipe(model__problem_type=labels.problem_type, data__label_columns=["label"]))
    values = np.arange(120) % len(names)
    probabilities = np.random.default_rng(0).dirichlet(np.ones(len(names)), 120).astype(np.float32)
    run = write_run(ExperimentFolder(tmp_path).run(0), recipe, {"test": (probabilities, values)}, labels=labels)
    pixels = figures_of(Source(recipe, labels, [read_seed(run)]))["figures/confusion"]
    assert 1000 < pixels.shape[0] == pixels.shape[1] < 1500
