"""A small part of `python -m tests.faults.fuzz`: the same cases in every run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.fuzz import LONGEST_MESSAGE, Case, Fuzzer, Outcome, check_case

pytestmark = pytest.mark.slow

# Cases that once ended in a traceback, or in a message of thousands of characters.
CORPUS = (10, 21, 36, 45, 51, 53, 71, 102, 109, 117, 133, 211, 271, 283, 343, 811, 1071)


@pytest.fixture
def fuzzer(tiny_llama: Path, products: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fuzzer:
    # Recipes name paths that are relative to the current folder.
    monkeypatch.chdir(tmp_path)
    return Fuzzer(tiny_llama, products, tmp_path)


def bad(outcomes: list[Outcome]) -> list[str]:
    """The outcomes that a user should never see."""
    return [str(o) for o in outcomes if o.kind == "traceback" or len(o.message) >= LONGEST_MESSAGE]


def test_mutated_recipes_are_accepted_or_refused_in_a_sentence(fuzzer: Fuzzer) -> None:
    from llmcls.recipe.load import load_recipe
    from llmcls.results.run_folder import ExperimentFolder

    def load(case: Case) -> None:
        ExperimentFolder.of(load_recipe(case.recipe, case.overrides))

    outcomes = [fuzzer.run(number, load) for number in range(600) if number % 12 in (0, 1, 2, 3, 4, 5, 9)]
    assert bad(outcomes) == []
    assert {outcome.kind for outcome in outcomes} == {"accepted", "refused"}


def test_mutated_tables_and_accepted_recipes_are_accepted_or_refused_in_a_sentence(fuzzer: Fuzzer) -> None:
    outcomes = [fuzzer.run(number, check_case) for number in (*CORPUS, *range(606, 618))]
    assert bad(outcomes) == []
    assert {outcome.kind for outcome in outcomes} == {"accepted", "refused"}
