from __future__ import annotations

import pytest

from llmcls.results.cells import format_number


@pytest.mark.parametrize(
    "value, text", [(None, "–"), (float("nan"), "–"), (float("inf"), "–"), (0.5, "0.5000"), (3, "3")]
)
def test_numbers_have_four_digits_and_undefined_ones_a_dash(value: float | None, text: str) -> None:
    assert format_number(value) == text
