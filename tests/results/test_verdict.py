from __future__ import annotations

import numpy as np
import pytest

from llmcls.data.labels import LabelSpace
from llmcls.evaluation.baseline_store import Baseline
from llmcls.evaluation.bootstrap import NAMES
from llmcls.recipe.load import load_recipe
from llmcls.results.report import render_report
from llmcls.results.run_folder import ExperimentFolder, RunFolder
from llmcls.results.summary import write_summary
from llmcls.results.verdict import Gain, RunVerdict, verdict_on
from tests.helpers import read_json
from tests.results.helpers import random_case, write_run
from tests.results.page import read_page

CLASSES = LabelSpace(["a", "b"], ["class"], "single_label_classification", ["a", "b"])


@pytest.fixture
def experiment(write_recipe) -> ExperimentFolder:
    """Two seeds, a baseline that is worse, one that decides the same but for a row, and one that is better."""
    recipe = load_recipe(write_recipe(exp__baselines=None))
    experiment = ExperimentFolder.of(recipe)
    for number in (0, 1):
        case = random_case(number, noise=0.3)
        write_run(experiment.run(number), recipe, {"validation": case, "test": case}, seed=number)
    probabilities, values = random_case(0)
    same = probabilities >= 0.5
    same[0, 0] ^= True
    worse = random_case(5, noise=0.9)[0] >= 0.5
    decisions = {"majority": worse, "probe": same, "tfidf_linear": values.astype(bool)}
    found = {name: Baseline({"test": dict.fromkeys(NAMES, 0.5)}, {"test": d}) for name, d in decisions.items()}
    experiment.baselines.write("texts", "key", found)
    return experiment


def test_better_worse_and_noise_are_told_apart(experiment: ExperimentFolder) -> None:
    verdict = verdict_on([experiment.run(0), experiment.run(1)])
    assert verdict is not None
    assert (verdict.split, verdict.metric, verdict.seeds) == ("test", "f1_micro", 2)
    values = [read_json(experiment.run(i).metrics)["test"]["f1_micro"] for i in (0, 1)]
    assert verdict.value == pytest.approx(np.mean(values))
    words = {gain.baseline: gain.word for gain in verdict.gains}
    assert words == {"probe": "noise", "tfidf_linear": "worse", "majority": "better"}
    for gain in verdict.gains:
        assert gain.low <= verdict.value - gain.value <= gain.high


def test_the_summary_ends_with_it_and_the_report_begins_with_it(experiment: ExperimentFolder) -> None:
    runs = [experiment.run(0), experiment.run(1)]
    verdict = verdict_on(runs)
    assert verdict is not None
    lines = write_summary(experiment, runs).splitlines()
    assert lines[0].startswith("# ")
    end = lines[lines.index("## Verdict") :]
    steps = read_json(experiment.summary_json)["next_steps"]
    assert end[2:] == [verdict.sentence(), "", "What to do next:", "", *(f"- {step}" for step in steps)]
    assert steps[0].startswith("Do not deploy this model: TF-IDF with a linear model is better.")
    assert read_json(experiment.summary_json)["verdict"]["sentence"] == verdict.sentence()
    alone = verdict_on(runs[:1])
    assert alone is not None
    page = read_page(render_report(runs[0]))
    assert page.one("p", class_="verdict").text == alone.sentence()
    assert steps[0] in page.one("ul", class_="next").text
    assert "(one seed)" in alone.sentence()


def test_the_sentence_says_how_much_and_what_follows() -> None:
    probe, majority = Gain("probe", 0.70, 0.05, 0.11, "better"), Gain("majority", 0.1, 0.6, 0.7, "better")
    tfidf = Gain("tfidf_linear", 0.785, -0.02, -0.0001, "noise")
    verdict = RunVerdict("test", "accuracy", 0.78, 3, [probe, majority])
    assert verdict.sentence() == (
        "Fine-tuning reaches accuracy 0.780 on test (the mean of 3 seeds): 0.080 more than the frozen model with a "
        "linear probe (95 % interval +0.050 to +0.110) and 0.680 more than the most frequent labels (+0.600 to "
        "+0.700). All of this is more than noise."
    )
    verdict = RunVerdict("validation", "f1_micro", 0.78, 1, [tfidf])
    assert verdict.sentence() == (
        "Fine-tuning reaches micro-F1 0.780 on validation (one seed): 0.005 less than TF-IDF with a linear model (95 % "
        "interval -0.020 to +0.000; within noise). Here TF-IDF with a linear model is as good, as far as this data can "
        "tell, and costs less."
    )


def test_without_baselines_there_is_no_verdict(experiment: ExperimentFolder, write_recipe) -> None:
    run = experiment.run(0)
    experiment.baselines.write("texts", "key", {"majority": Baseline({}, {"test": np.zeros((3, 2), dtype=bool)})})
    assert verdict_on([run]) is None, "it was measured on other rows"
    experiment.baselines.write("texts", "key", {})
    assert verdict_on([run]) is None
    assert "Fine-tuning reaches" not in render_report(run).read_text(encoding="utf-8")


def test_classes_are_judged_by_accuracy(write_recipe) -> None:
    kind = "single_label_classification"
    recipe = load_recipe(write_recipe(exp__baselines=None, data__label_columns=["class"], model__problem_type=kind))
    values = np.random.default_rng(0).integers(0, 2, 100)
    probabilities = np.stack([1 - values, values], axis=1).astype(np.float32) * 0.8 + 0.1
    run: RunFolder = write_run(
        ExperimentFolder.of(recipe).run(0), recipe, {"test": (probabilities, values)}, labels=CLASSES
    )
    wrong = {"test": np.tile([True, False], (100, 1))}
    run.experiment.baselines.write("texts", "key", {"majority": Baseline({"test": {}}, wrong)})
    verdict = verdict_on([run])
    assert verdict is not None
    assert (verdict.metric, verdict.value) == ("accuracy", 1.0)
    assert verdict.gains[0].value == pytest.approx((values == 0).mean())


def test_a_binary_task_is_judged_by_its_positive_class(write_recipe) -> None:
    kind = "binary_classification"
    recipe = load_recipe(write_recipe(exp__baselines=None, data__label_columns=["yes"], model__problem_type=kind))
    values = np.random.default_rng(0).integers(0, 2, 100)
    probabilities = np.stack([1 - values, values], axis=1).astype(np.float32) * 0.8 + 0.1
    labels = LabelSpace(["no", "yes"], ["yes"], kind)
    run = write_run(ExperimentFolder.of(recipe).run(0), recipe, {"test": (probabilities, values)}, labels=labels)
    run.experiment.baselines.write(
        "texts", "key", {"majority": Baseline({"test": {}}, {"test": np.tile([True, False], (100, 1))})}
    )
    verdict = verdict_on([run])
    assert verdict is not None
    assert verdict.sentence().startswith("Fine-tuning reaches F1 of the positive class 1.000 on test (one seed): 1.000")
