from __future__ import annotations

from typing import Any

import pytest

from llmcls.recipe.load import load_recipe
from llmcls.results.next_steps import MOST_STEPS, next_steps
from llmcls.results.verdict import Gain, RunVerdict


def result(**changes: Any) -> dict[str, Any]:
    good = {"f1": 0.9, "support": 20}
    found: dict[str, Any] = {
        "best_step": 5, "history": [{"step": s, "validation": {"f1_micro": v}} for s, v in ((5, 0.9), (9, 0.8))],
        "train": {"loss": 0.2}, "test": {"loss": 0.3, "per_class": {"a": good, "b": good},
                                         "intervals": {"f1_micro": [0.8, 0.85]}},
        "data": {"train": {"labels": {"a": 90, "b": 3}}},
    }  # fmt: skip
    return found | changes


def verdict(word: str) -> RunVerdict:
    return RunVerdict("test", "f1_micro", 0.8, 1, [Gain("tfidf_linear", 0.7, 0.05, 0.15, word)])


@pytest.fixture
def advice(write_recipe):
    recipe = load_recipe(write_recipe())

    def of(word: str | None = "better", *more: dict[str, Any], **changes: Any) -> list[str]:
        return next_steps(verdict(word) if word else None, recipe, [result(**changes), *more])

    return of


def test_a_better_baseline_comes_first(advice) -> None:
    assert advice("worse")[0].startswith("Do not deploy this model: TF-IDF with a linear model is better.")
    assert "Label more texts, for training and for test" in advice("noise")[0]
    assert "exp.baselines=true" in advice(None)[0]


def test_a_run_that_still_improves_should_be_longer(advice) -> None:
    rising = [{"step": s, "validation": {"f1_micro": v}} for s, v in ((5, 0.8), (9, 0.9))]
    assert "train.num_train_epochs=4" in advice(best_step=9, history=rising)[0]
    assert not [a for a in advice() if "Train longer" in a]


def test_what_the_figures_cannot_say_is_said(advice) -> None:
    test = result()["test"]
    assert "interval is 0.20 wide" in advice(test=test | {"intervals": {"f1_micro": [0.7, 0.9]}})[0]
    assert "by heart" in advice(test=test | {"loss": 2.0})[0]


def test_without_test_rows_a_test_file_is_asked_for(write_recipe) -> None:
    found = result()
    found["validation"] = found.pop("test")
    recipe = load_recipe(write_recipe())
    assert "Add data.test_csv: validation has chosen the model" in next_steps(verdict("better"), recipe, [found])[0]
    del found["validation"]
    assert "nobody knows how good" in next_steps(None, recipe, [found])[1]


def test_the_rarest_weak_label_is_named_with_its_texts(advice) -> None:
    test = result()["test"]
    test["per_class"] = {"a": {"f1": 0.5, "support": 5}, "b": {"f1": 0.1, "support": 5}, "c": {"f1": 0.0, "support": 0}}
    assert advice(test=test)[0].endswith("b (F1 0.10, 3 training texts), a (F1 0.50, 90 training texts).")


def test_one_seed_asks_for_more_and_three_do_not(advice) -> None:
    assert any("exp.seeds=[1,2,3]" in a for a in advice())
    assert not any("exp.seeds" in a for a in advice("better", result(), result()))


def test_there_is_always_something_to_do_and_never_too_much(advice) -> None:
    for word in ("better", "worse", "noise", None):
        assert 1 <= len(advice(word)) <= MOST_STEPS
