"""Each source in its real format, in small: the hub's features, and the collection's own SGML."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmcls.common.user_error import UserError
from llmcls.prepare import main


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["hub", "--source", "x"], "hub needs --source"),
        (["yelp", "--validation", "2"], "--validation is 2.0"),
        (["yelp", "--limit", "0"], "--limit is 0"),
        (["reuters", "--source", "nowhere"], "contains no reut2"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        main([*arguments, "--out", str(tmp_path)])


def test_a_hub_out_of_reach_is_one_sentence(tmp_path: Path) -> None:
    # The tests run offline.
    with pytest.raises(UserError, match="fancyzhx/ag_news: the dataset cannot be loaded from the hub"):
        main(["ag_news", "--out", str(tmp_path)])
