from __future__ import annotations

from llmcls.common.nearest import nearest


def test_the_most_similar_name_is_found() -> None:
    assert nearest("titel", ["title", "titles", "description"]) == "title"
    assert nearest("zzz", ["title", "description"]) is None
    assert nearest("title", []) is None
    assert nearest("bf16", ["bfloat16", "float16"], cutoff=0.9) is None


def test_long_names_and_many_names_are_not_compared() -> None:
    assert nearest("x" * 1_000_000, ["x" * 999_999]) is None
    assert nearest("titel", ["title", "x" * 1_000_000]) == "title"
    assert nearest("titel", [f"title{i}" for i in range(100_000)]) is None
