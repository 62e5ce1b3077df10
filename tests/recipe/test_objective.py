from __future__ import annotations

import pytest

from llmcls.recipe.objective import parse_objective


@pytest.mark.parametrize(
    "text, expected",
    [
        ("f1", ("f", 1.0)),
        ("f0.5", ("f", 0.5)),
        ("f2", ("f", 2.0)),
        ("recall@precision=0.9", ("recall", 0.9)),
        ("recall@precision=.75", ("recall", 0.75)),
        ("recall@precision=1.0", ("recall", 1.0)),
    ],
)
def test_an_objective_is_its_kind_and_its_number(text: str, expected: tuple[str, float]) -> None:
    assert parse_objective(text) == expected


@pytest.mark.parametrize("text", ["", "f", "f0", "f-1", "accuracy", "recall@precision=0", "recall@precision=1.1", "F1"])
def test_another_text_is_refused_with_the_forms_that_are_allowed(text: str) -> None:
    with pytest.raises(ValueError, match=r"f1, f0\.5, f2 .*recall@precision=0\.9"):
        parse_objective(text)
