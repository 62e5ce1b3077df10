from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from llmcls.common.user_error import UserError
from llmcls.evaluation.baseline_store import Baseline
from llmcls.recipe.load import load_recipe
from llmcls.results.report import format_number, render_report, write_report
from llmcls.results.run_folder import ExperimentFolder, RunFolder
from tests.conftest import Experiment
from tests.helpers import read_json
from tests.results.helpers import random_case, without_pictures, write_run


@pytest.fixture
def run(write_recipe) -> RunFolder:
    recipe = load_recipe(write_recipe(data__label_columns=["a<b", "c"]))
    return write_run(ExperimentFolder.of(recipe).run(0), recipe, {"validation": random_case(0), "test": random_case(1)})


def test_a_report_needs_no_other_file(run: RunFolder) -> None:
    page = render_report(run).read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "<svg" in page
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert [link for link in links if not link.startswith("#")] == []


def test_a_report_has_results_of_the_last_split_with_intervals_and_labels(run: RunFolder) -> None:
    page = render_report(run).read_text(encoding="utf-8")
    metrics = read_json(run.metrics)
    assert "<title>tiny-llama on products, seed 1</title>" in page
    assert "9 optimizer steps in 2 s" in page
    assert "<h2>Result (test)</h2>" in page
    assert f"<td>{metrics['test']['f1_micro']:.4f}</td>" in page
    assert f"<td>{metrics['validation']['f1_micro']:.4f}</td>" in page
    assert "95 % interval" in page
    assert "<td>a</td>" in page
    assert "0.5000" in page, "the thresholds"


def test_a_report_says_which_rule_decided_and_what_the_others_would_reach(run: RunFolder) -> None:
    metrics = read_json(run.metrics)
    metrics["thresholds"] = {"rule": "joint", "metric": "f1_micro", "reason": "0.7 against 0.6 at 0.5"}
    write_report(run, load_recipe(run.recipe), metrics)
    page = run.report.read_text(encoding="utf-8")
    assert "Thresholds: joint, tuned on validation for f1_micro (0.7 against 0.6 at 0.5)." in page
    for rule, words in (("per_class", "per_class (f1_macro)"), ("joint", "joint (f1_micro)"), ("fixed", "0.5")):
        value = metrics["threshold_rules"][rule]["test"]["f1_samples"]
        assert re.search(rf"<td>{re.escape(words)}</td>.*?<td>{value:.4f}</td>", page)


def test_the_curve_of_the_metric_has_its_value_at_one_half_beside_it(run: RunFolder) -> None:
    # matplotlib keeps the text of a label as a comment beside its outlines.
    recipe, metrics = load_recipe(run.recipe), read_json(run.metrics)
    for rule, drawn in (("fixed", False), ("joint", True)):
        metrics["history"][0] |= {"at_half": {"f1_micro": 0.0}, "thresholds": rule}
        write_report(run, recipe, metrics)
        assert ("<!-- at 0.5 -->" in run.report.read_text(encoding="utf-8")) is drawn


def test_names_are_escaped(run: RunFolder) -> None:
    assert "a&lt;b" in render_report(run).read_text(encoding="utf-8")


def test_baselines_are_columns_of_the_result(run: RunFolder) -> None:
    measured = {"test": dict.fromkeys(("f1_micro", "f1_macro", "accuracy"), 0.1234)}
    run.experiment.baselines.write("texts", "key", {"majority": Baseline(measured, {})})
    recipe = load_recipe(run.recipe)
    write_report(run, replace(recipe, exp=replace(recipe.exp, baselines=None)), read_json(run.metrics))
    page = run.report.read_text(encoding="utf-8")
    assert "<th>majority</th>" in page
    assert "0.1234" in page
    write_report(run, recipe, read_json(run.metrics))
    assert "<th>majority</th>" not in run.report.read_text(encoding="utf-8"), "this recipe wants none"


def test_a_run_that_evaluated_nothing_has_a_report_too(run: RunFolder) -> None:
    metrics = {k: v for k, v in read_json(run.metrics).items() if k not in ("validation", "test")}
    write_report(run, load_recipe(run.recipe), metrics | {"history": [{"step": 1, "train_loss": 0.5}]})
    assert "No split was evaluated" in run.report.read_text(encoding="utf-8")


def test_another_training_loss_is_labelled(run: RunFolder) -> None:
    recipe = load_recipe(run.recipe)
    write_report(run, replace(recipe, train=replace(recipe.train, loss="focal")), read_json(run.metrics))
    # matplotlib keeps the text of a label as a comment beside its outlines.
    assert "validation (cross-entropy)" in run.report.read_text(encoding="utf-8")


def test_a_deleted_report_is_rendered_again_from_the_files_of_the_run(trained: Experiment) -> None:
    folder = RunFolder(trained.runs[0])
    before = folder.report.read_text(encoding="utf-8")
    folder.report.unlink()
    assert render_report(folder) == folder.report
    assert without_pictures(folder.report.read_text(encoding="utf-8")) == without_pictures(before)


def test_an_unfinished_run_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        render_report(RunFolder(tmp_path))


@pytest.mark.parametrize(
    "value, text", [(None, "–"), (float("nan"), "–"), (float("inf"), "–"), (0.5, "0.5000"), (3, "3")]
)
def test_numbers_have_four_digits_and_undefined_ones_a_dash(value: float | None, text: str) -> None:
    assert format_number(value) == text
