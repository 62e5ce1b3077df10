from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import SkipTestWarning
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks

import llmcls
from llmcls.common.user_error import UserError
from llmcls.results.error_analysis import read_texts
from llmcls.results.finished_runs import open_run
from llmcls.results.run_folder import RunFolder
from llmcls.serving.estimator import Classifier
from tests.conftest import Experiment
from tests.helpers import read_lines


@pytest.fixture
def classifier(trained_once: Experiment) -> Classifier:
    return Classifier.load(trained_once.runs[0])


@pytest.fixture(scope="module")
def texts(trained_once: Experiment) -> list[str]:
    return read_texts(open_run(RunFolder(trained_once.runs[0])).recipe, "test").texts


def test_it_answers_as_the_run_did(classifier: Classifier, texts: list[str], trained_once: Experiment) -> None:
    stored = read_lines(trained_once.runs[0] / "predictions_test.jsonl")
    expected = np.array([list(line["probabilities"].values()) for line in stored])
    assert classifier.predict_proba(texts) == pytest.approx(expected, abs=1e-6)
    assert classifier.predict_labels(texts) == [line["labels"] for line in stored]
    assert list(classifier.classes_) == list(stored[0]["probabilities"])
    assert classifier.predict(texts).sum(axis=1).tolist() == [len(line["labels"]) for line in stored]


def test_it_is_the_name_that_the_package_offers() -> None:
    assert llmcls.Classifier is Classifier
    with pytest.raises(AttributeError, match="has no attribute 'Clasifier'"):
        llmcls.Clasifier  # noqa: B018


def test_a_column_an_array_and_a_generator_give_the_same(classifier: Classifier, texts: list[str]) -> None:
    expected = classifier.predict_proba(texts)
    for given in (pd.Series(texts), np.array(texts, dtype=object), (text for text in texts)):
        assert np.array_equal(classifier.predict_proba(given), expected)


def test_scikit_learn_takes_it_as_fitted(classifier: Classifier, texts: list[str]) -> None:
    marks = classifier.predict(texts)
    pipeline = make_pipeline(FunctionTransformer(), clone(classifier))
    pipeline.steps[-1] = ("classifier", classifier)
    assert cross_val_score(pipeline, texts, marks, cv=2, scoring="f1_micro").tolist() == [1.0, 1.0]
    assert clone(classifier).get_params() == classifier.get_params()


# `check_estimator` itself leaves out nearly all checks of an estimator whose input is no matrix of numbers. These need
# none.
CHECKS = (
    "estimator_cloneable", "estimator_tags_renamed", "valid_tag_types", "estimator_repr", "no_attributes_set_in_init",
    "estimators_overwrite_params", "estimators_fit_returns_self", "mixin_order",
    "readonly_memmap_input", "do_not_raise_errors_in_init_or_set_params", "n_features_in_after_fitting",
    "positive_only_tag_during_fit", "parameters_default_constructible", "get_params_invariance", "set_params",
)  # fmt: skip


def test_the_checks_of_scikit_learn_that_apply_pass(trained_once: Experiment) -> None:
    classifier = Classifier(trained_once.runs[0])
    for name in CHECKS:
        getattr(estimator_checks, f"check_{name}")("Classifier", clone(classifier))
    with pytest.warns(SkipTestWarning, match="one_d_array=True, two_d_array=False.*string=True"):
        results = estimator_checks.check_estimator(classifier)
    assert [result["status"] for result in results] == ["passed"]


def test_a_copy_in_another_process_loads_its_own_model(classifier: Classifier, texts: list[str]) -> None:
    stored = pickle.dumps(classifier)
    assert len(stored) < 5000
    copy = pickle.loads(stored)
    assert np.array_equal(copy.predict_proba(texts[:3]), classifier.predict_proba(texts[:3]))


def test_a_generator_is_read_chunk_by_chunk(trained_once: Experiment, texts: list[str]) -> None:
    read = []
    endless = (read.append(text) or text for text in texts * 1000)
    found = Classifier(trained_once.runs[0], chunk_rows=8).stream(endless)
    for _ in range(9):
        next(found)
    assert len(read) == 16


def test_no_text_gives_no_row(classifier: Classifier) -> None:
    assert classifier.predict_proba([]).shape == (0, 10)
    assert classifier.predict([]).shape == (0, 10)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("one text", "takes a list of texts, not one text"),
        (pd.DataFrame({"title": ["a"], "body": ["b"]}), "takes one column of texts, not a table"),
        (["a", None], "text 1 is NoneType, not a str"),
        (["a", "b\ud800"], "text 1: character 1 is half of a pair"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(classifier: Classifier, given: object, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        classifier.predict(given)  # type: ignore[arg-type]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        Classifier.load(tmp_path)
