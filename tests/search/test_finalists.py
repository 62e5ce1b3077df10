"""The choice among finalists and its words. A whole search is in test_drive.py."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from optuna.distributions import CategoricalDistribution

from llmcls.recipe.load import load_recipe
from llmcls.results.comparison import Verdict
from llmcls.search import finalists
from llmcls.search.finalists import Candidate, candidates_of, result_of, trial_table
from llmcls.search.space import Space
from llmcls.search.study import open_search, taken_trial


@pytest.fixture
def search(tmp_path: Path):
    return open_search(tmp_path, "tune", Space("s", {"model.lora_r": CategoricalDistribution(["2", "4|8"])}), True, 1)


def test_the_recipe_itself_is_always_a_candidate(search) -> None:
    for value in (0.3, 0.9, 0.6):
        with taken_trial(search, 3) as trial:
            search.study.tell(trial, value)
    found = candidates_of(search, 2, [1, 2])
    assert [c.name for c in found] == ["the recipe", "trial 1", "trial 2"]
    assert found[0].overrides == ["exp.run_name=tune-recipe", "exp.seeds=[1, 2]"]
    assert found[1].overrides[-2:] == ["exp.run_name=tune-001", "exp.seeds=[1, 2]"]
    # A | in a value would end a cell of the table.
    assert all(line.replace("\\|", "").count("|") == 5 for line in trial_table(search))


def candidates(tmp_path: Path, write_recipe, values: dict[str, list[float]]):
    """Candidates whose runs have these values on validation, and a function that loads their recipes."""
    recipe = write_recipe()
    made = []
    for name, of_seeds in values.items():
        overrides = [f"exp.run_name={name.replace(' ', '-')}", f"exp.seeds={list(range(1, len(of_seeds) + 1))}"]
        made.append(Candidate(name, overrides, [] if name == "the recipe" else ["model.lora_r=4"]))
        for run, value in zip(finalists.runs_of(load_recipe(recipe, overrides)), of_seeds, strict=True):
            run.path.mkdir(parents=True)
            run.metrics.write_text(json.dumps({"validation": {"f1_micro": value, "loss": value}}))
    return made, lambda candidate: load_recipe(recipe, candidate.overrides)


def test_a_lucky_seed_does_not_win(write_recipe, tmp_path) -> None:
    values = {"the recipe": [0.5, 0.5], "trial 1": [0.9, 0.3], "trial 2": [0.7, 0.7]}
    result = result_of("f1_micro", *candidates(tmp_path, write_recipe, values))
    assert (result.best, result.changes, result.test) == ("trial 2", ["model.lora_r=4"], None)
    assert result.sentence == "Trial 2 is the best: micro-F1 0.7000 on validation, the recipe 0.5000."


def test_a_recipe_that_no_trial_beats_is_kept(write_recipe, tmp_path) -> None:
    made, load = candidates(tmp_path, write_recipe, {"the recipe": [0.5], "trial 1": [0.5]})
    result = result_of("f1_micro", made, load)
    assert (result.best, result.changes) == ("the recipe", [])
    assert result.sentence.startswith("No trial is better than the recipe")


def test_of_a_loss_less_is_better(write_recipe, tmp_path) -> None:
    made, load = candidates(tmp_path, write_recipe, {"the recipe": [0.5], "trial 1": [0.4]})
    assert result_of("loss", made, load).best == "trial 1"


@pytest.mark.parametrize(
    "word, sentence",
    [
        ("B is better", "The gain holds on test: +0.1000 micro-F1 [+0.0500, +0.1500], p 0.010."),
        ("noise", "On test the difference is within noise: +0.1000 micro-F1 [+0.0500, +0.1500], p 0.010."),
        ("B is worse", "On test it is worse than the recipe: +0.1000 micro-F1 [+0.0500, +0.1500], p 0.010; keep"),
    ],
)
def test_the_words_say_whether_the_gain_holds_on_test(write_recipe, tmp_path, monkeypatch, word, sentence) -> None:
    made, load = candidates(tmp_path, write_recipe, {"the recipe": [0.5], "trial 1": [0.6]})
    monkeypatch.setattr("llmcls.results.run_folder.RunFolder.predicted_splits", lambda _: ["validation", "test"])
    verdict = Verdict("f1_micro", 0.5, 0.6, 0.05, 0.15, 0.01, word)
    monkeypatch.setattr(finalists, "compare", lambda *_, **__: SimpleNamespace(verdicts=[verdict]))
    assert sentence in result_of("f1_micro", made, load).sentence
