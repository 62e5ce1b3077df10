from __future__ import annotations

import pytest
from jinja2 import UndefinedError

from llmcls.results.report_page import code, number, percent, render


def test_what_is_missing_is_an_error_and_not_an_empty_place() -> None:
    with pytest.raises(UndefinedError):
        render("run.html", title="x")


def test_numbers_have_three_decimals() -> None:
    assert [number(v) for v in (0.5, 12, 12_345, None, float("nan"))] == ["0.500", "12", "12,345", "–", "–"]
    assert percent(2.0) == "100%"


def test_code_in_advice_is_marked_and_the_rest_escaped() -> None:
    assert code("`a <b>` <i>") == "<code>a &lt;b&gt;</code> &lt;i&gt;"
