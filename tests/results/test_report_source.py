from __future__ import annotations

import pytest

from llmcls.data.labels import LabelSpace
from llmcls.recipe.load import load_recipe
from llmcls.results.report_source import Source, read_seed
from llmcls.results.run_folder import ExperimentFolder, RunFolder
from tests.helpers import read_json
from tests.results.helpers import random_case, write_run


@pytest.fixture
def source(write_recipe) -> Source:
    recipe = load_recipe(write_recipe())
    runs = [write_run(ExperimentFolder.of(recipe).run(n), recipe, {"test": random_case(n)}, seed=n) for n in (0, 1)]
    return Source(recipe, LabelSpace(**read_json(runs[0].labels)), [read_seed(run) for run in runs])


def test_means_are_over_seeds_and_undefined_if_one_is(source: Source) -> None:
    values = [seed.metrics["test"]["f1_micro"] for seed in source.seeds]
    assert source.mean("test", "f1_micro") == pytest.approx(sum(values) / 2)
    source.seeds[0].metrics["test"]["f1_micro"] = None
    assert source.mean("test", "f1_micro") is None


def test_the_interval_of_several_seeds_is_that_of_their_mean(source: Source) -> None:
    alone = Source(source.recipe, source.labels, source.seeds[:1])
    assert alone.intervals == source.seeds[0].metrics["test"]["intervals"]
    low, high = source.intervals["f1_macro"]
    mean = source.mean("test", "f1_macro")
    assert mean is not None
    assert low < mean < high
    assert source.intervals != alone.intervals


def test_logged_lines_are_read_and_half_a_line_is_left_out(source: Source) -> None:
    run: RunFolder = source.seeds[0].folder
    assert [line["loss"] for line in read_seed(run).logged("train")] == [0.7, 0.2], "of the history"
    text = '{"step": 1, "split": "train", "loss": 0.9}\n{"step": 1, "split": "engine"}\n{"step": 2, "split": "tra'
    run.metrics_log.write_text(text)
    assert [line["loss"] for line in read_seed(run).logged("train")] == [0.9]
    assert read_seed(run).logged("validation") == []
