from __future__ import annotations

import pytest

from llmcls.data.label_cells import are_lists, list_items, look_alikes, separator_in


@pytest.mark.parametrize(
    "cell, items",
    [
        ("[\"it's\", 'a, b']", ("it's", "a, b")),
        ('["caf\\u00e9", null, 3]', ("café", "3")),
        ("[np.str_('joy'), np.str_('love')]", ("joy", "love")),
        ("['joy'\n 'love']", ("joy", "love")),
        ("('joy',)", ("joy",)),
        ("[1 2]", ("1", "2")),
        ("(other)", None),
        ("(1)", None),
        ("{a: 1}", None),
        ("[['a']]", None),
        ("['a", None),
        ("[" * 5000 + "]" * 5000, None),
    ],
)
def test_lists_of_all_kinds_are_read_and_names_in_brackets_are_not(cell: str, items: tuple[str, ...] | None) -> None:
    assert list_items(cell) == items


def test_one_cell_that_is_no_list_makes_none_of_them_one() -> None:
    assert are_lists(["['a']", "", "[]"])
    assert not are_lists(["['a']", "a"])
    assert not are_lists(["[]", ""])


@pytest.mark.parametrize(
    "cells, separator",
    [
        (["joy, love", "love, fear", "joy"], ","),
        (["a;b", "b;c", "c;a"], ";"),
        (["Health, Beauty", "Sports, Outdoors", "Toys"], None),
        (["red", "green"], None),
        ([], None),
    ],
)
def test_a_separator_is_what_gives_cells_common_names(cells: list[str], separator: str | None) -> None:
    assert separator_in(cells) == separator


def test_names_that_differ_only_in_writing_are_found() -> None:
    assert look_alikes(["Joy", "love", "joy ", "JOY"]) == [("Joy", "joy "), ("Joy", "JOY")]
