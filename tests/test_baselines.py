from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llmcls.data.labels import label_space
from llmcls.data.tables import read_table
from llmcls.evaluation.baselines import cached_baselines, run_baselines
from llmcls.recipe.load import load_recipe
from tests.conftest import TOPICS, needs_real_data, read_rows
from tests.test_train import train


def test_majority_says_the_commonest_set_of_labels(write_recipe, products: Path) -> None:
    recipe = load_recipe(write_recipe())
    found = run_baselines(recipe, label_space(recipe, read_table(recipe.data.train_csv)))
    sets = [tuple(t for t in TOPICS if row[t] == "1") for row in read_rows(products / "train.csv")]
    commonest = max(set(sets), key=sets.count)
    true = [tuple(t for t in TOPICS if row[t] == "1") for row in read_rows(products / "test.csv")]
    assert found["majority"]["test"]["accuracy"] == pytest.approx(np.mean([t == commonest for t in true]))
    assert found["tfidf_linear"]["test"]["f1_micro"] > found["majority"]["test"]["f1_micro"]


@pytest.mark.parametrize("kind", ["single_label_classification", "binary_classification"])
def test_classes_have_baselines_too(write_recipe, kind: str) -> None:
    recipe = load_recipe(write_recipe(data__label_columns=["books"], model__problem_type=kind))
    found = run_baselines(recipe, label_space(recipe, read_table(recipe.data.train_csv)))
    assert 0 < found["majority"]["test"]["accuracy"] <= 1
    assert found["tfidf_linear"]["test"]["accuracy"] >= found["majority"]["test"]["accuracy"]


def test_they_stand_in_summary_and_report_and_are_run_once(write_recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    root = train(write_recipe(train__num_train_epochs=1, exp__baselines=None))
    saved = json.loads((root / "baselines.json").read_text(encoding="utf-8"))["baselines"]
    assert f"{saved['tfidf_linear']['test']['f1_micro']:.4f}" in (root / "summary.md").read_text(encoding="utf-8")
    report = (root / "run_0" / "report.html").read_text(encoding="utf-8")
    assert "TF-IDF + linear" in report
    assert "95 % interval" in report
    recipe = load_recipe(root / "run_0" / "recipe.yaml")
    labels = label_space(recipe, read_table(recipe.data.train_csv))

    def never(*_):
        raise AssertionError("they were run again")

    monkeypatch.setattr("llmcls.evaluation.baselines.run_baselines", never)
    assert cached_baselines(recipe, labels, root / "baselines.json") == saved
    recipe.exp.baselines = False
    assert cached_baselines(recipe, labels, root / "baselines.json") is None


def test_large_sets_go_without_unless_asked(write_recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(write_recipe(exp__baselines=None))
    labels = label_space(recipe, read_table(recipe.data.train_csv))
    monkeypatch.setattr("llmcls.evaluation.baselines.QUICK_BYTES", 100)
    assert run_baselines(recipe, labels) is None
    recipe.exp.baselines = True
    assert run_baselines(recipe, labels) is not None


@needs_real_data
def test_on_reuters_the_linear_model_reaches_what_is_known_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.conftest import REUTERS, ROOT, STORY_LLAMA

    monkeypatch.setenv("REUTERS_DIR", str(REUTERS))
    overrides = ["train.thresholds=fixed", f"model.model_name={STORY_LLAMA}"]
    recipe = load_recipe(ROOT / "recipes" / "reuters_lora.yaml", overrides)
    found = run_baselines(recipe, label_space(recipe, read_table(recipe.data.train_csv)))["tfidf_linear"]["test"]
    assert found["f1_micro"] == pytest.approx(0.938, abs=0.005)
    assert found["f1_macro"] == pytest.approx(0.867, abs=0.01)
