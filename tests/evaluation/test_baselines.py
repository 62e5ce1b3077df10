from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from llmcls.data.labels import LabelSpace, label_space
from llmcls.data.tables import read_table
from llmcls.evaluation.baseline_store import Baseline, BaselineStore
from llmcls.evaluation.baselines import majority, run_baselines, store_baselines, tfidf_linear
from llmcls.recipe.load import load_recipe
from llmcls.recipe.schema import Recipe
from llmcls.results.cells import shown_baselines
from llmcls.results.run_folder import ExperimentFolder
from tests.conftest import Experiment
from tests.helpers import REUTERS, ROOT, STORY_LLAMA, TOPICS, needs_real_data, read_json, read_rows, write_csv

TWO = LabelSpace(["a", "b"], ["a", "b"], "multi_label_classification")


def labels_of(recipe: Recipe) -> LabelSpace:
    return label_space(recipe, read_table(recipe.data.train_csv))


def metrics_of_baselines(recipe: Recipe) -> dict[str, Any]:
    found = run_baselines(recipe, labels_of(recipe))
    assert found is not None
    return {name: baseline.metrics for name, baseline in found.items()}


def test_majority_predicts_the_most_frequent_set_of_labels(write_recipe, products: Path) -> None:
    recipe = load_recipe(write_recipe())
    found = metrics_of_baselines(recipe)
    sets = [tuple(t for t in TOPICS if row[t] == "1") for row in read_rows(products / "train.csv")]
    most_frequent = max(set(sets), key=sets.count)
    true = [tuple(t for t in TOPICS if row[t] == "1") for row in read_rows(products / "test.csv")]
    assert found["majority"]["test"]["accuracy"] == pytest.approx(np.mean([t == most_frequent for t in true]))
    assert found["tfidf_linear"]["test"]["f1_micro"] > found["majority"]["test"]["f1_micro"]


def test_texts_are_turned_into_features_once_not_for_each_label(write_recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = TfidfVectorizer.transform
    monkeypatch.setattr(TfidfVectorizer, "transform", lambda self, texts: read.append(1) or real(self, texts))
    metrics_of_baselines(load_recipe(write_recipe()))
    assert len(read) == 2, "validation and test"


@pytest.mark.parametrize("kind", ["single_label_classification", "binary_classification"])
def test_classes_have_baselines_too(write_recipe, kind: str) -> None:
    recipe = load_recipe(write_recipe(data__label_columns=["books"], model__problem_type=kind))
    found = metrics_of_baselines(recipe)
    assert 0 < found["majority"]["test"]["accuracy"] <= 1
    assert found["tfidf_linear"]["test"]["accuracy"] >= found["majority"]["test"]["accuracy"]


def test_baselines_are_in_summary_and_report_and_run_once(trained: Experiment, monkeypatch) -> None:
    saved = read_json(trained.folder / "baselines.json")["baselines"]
    assert f"{saved['tfidf_linear']['test']['f1_micro']:.4f}" in (trained.folder / "summary.md").read_text("utf-8")
    report = (trained.runs[0] / "report.html").read_text(encoding="utf-8")
    assert "TF-IDF + linear" in report
    assert "95 % interval" in report
    recipe, store = load_recipe(trained.recipe), ExperimentFolder(trained.folder).baselines

    def never(*_):
        raise AssertionError("they were run again")

    monkeypatch.setattr("llmcls.evaluation.baselines.run_baselines", never)
    store_baselines(recipe, labels_of(recipe), store)
    assert store.read() == saved
    recipe.exp.baselines = False
    assert shown_baselines(ExperimentFolder(trained.folder), recipe) == {}


@pytest.fixture
def edited(products: Path, tmp_path: Path) -> Callable[[str], str]:
    """A function that returns a copy of the test split with this title in its first row."""

    def edit(title: str) -> str:
        rows = read_rows(products / "test.csv")
        rows[0]["title"] = title
        return str(write_csv(tmp_path / "test.csv", rows))

    return edit


def test_baselines_are_run_again_if_a_file_or_the_recipe_changes(write_recipe, edited, tmp_path, monkeypatch) -> None:
    runs = []
    monkeypatch.setattr(
        "llmcls.evaluation.baselines.run_baselines",
        lambda *_: runs.append(1) or {"majority": Baseline({"run": len(runs)}, {})},
    )
    store = BaselineStore(tmp_path / "baselines.json", tmp_path / "decisions.npz")

    def number(*overrides: str) -> int:
        recipe = load_recipe(write_recipe(exp__baselines=True, data__test_csv=path), list(overrides))
        store_baselines(recipe, labels_of(recipe), store)
        return store.read()["majority"]["run"]

    path = edited("first")
    assert [number(), number(), number("learning_rate=0.1")] == [1, 1, 1]
    edited("second")
    assert [number(), number()] == [2, 2]
    assert number("thresholds=global") == 3


def test_baselines_of_a_replaced_recipe_go_if_the_new_one_has_none(write_recipe, edited, tmp_path, monkeypatch) -> None:
    store = BaselineStore(tmp_path / "baselines.json", tmp_path / "decisions.npz")
    recipe = load_recipe(write_recipe(exp__baselines=None))
    store_baselines(recipe, labels_of(recipe), store)
    assert set(store.read()) == set(store.decisions_on("test")) == {"majority", "tfidf_linear"}
    monkeypatch.setattr("llmcls.evaluation.baselines.QUICK_BYTES", 100)
    recipe.data.test_csv = edited("other")
    store_baselines(recipe, labels_of(recipe), store)
    assert store.read() == store.decisions_on("test") == {}


def test_large_sets_have_no_baselines_unless_requested(write_recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(write_recipe(exp__baselines=None))
    labels = labels_of(recipe)
    monkeypatch.setattr("llmcls.evaluation.baselines.QUICK_BYTES", 100)
    assert run_baselines(recipe, labels) is None
    recipe.exp.baselines = True
    assert run_baselines(recipe, labels) is not None


def test_labels_that_all_or_no_training_texts_have_are_not_fitted() -> None:
    texts = {"train": ["one word", "other word"], "test": ["some word", "no"]}
    values = np.array([[1, 0], [1, 0]], dtype=np.float32)
    assert tfidf_linear(texts, values, TWO)["test"].tolist() == [[1, 0], [1, 0]]
    assert majority(texts, values, TWO)["test"].tolist() == [[1, 0], [1, 0]]


@pytest.mark.parametrize("texts", [["", "  "], ["alpha", "beta"]], ids=["empty", "no repeated word"])
def test_texts_without_a_repeated_word_are_no_error(texts: list[str]) -> None:
    values = np.array([[1, 0], [0, 1]], dtype=np.float32)
    scores = tfidf_linear({"train": texts, "test": ["alpha"]}, values, TWO)["test"]
    assert scores.shape == (1, 2)
    assert np.isfinite(scores).all()


@pytest.mark.slow
@needs_real_data
def test_on_reuters_the_linear_model_reaches_its_published_quality(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REUTERS_DIR", str(REUTERS))
    overrides = ["train.thresholds=fixed", f"model.model_name={STORY_LLAMA}"]
    recipe = load_recipe(ROOT / "recipes" / "reuters_lora.yaml", overrides)
    found = metrics_of_baselines(recipe)["tfidf_linear"]["test"]
    assert found["f1_micro"] == pytest.approx(0.938, abs=0.005)
    assert found["f1_macro"] == pytest.approx(0.867, abs=0.01)
