from __future__ import annotations

import pytest

from llmcls.common.user_error import UserError, one_sentence


def test_it_is_no_error_that_code_around_a_library_call_would_catch() -> None:
    # Otherwise `except (OSError, ValueError)` would replace a clear sentence by a vague one.
    assert UserError.__bases__ == (Exception,)
    with pytest.raises(UserError, match=r"^recipe\.yaml: train\.batch_size is 0$"):
        raise UserError("recipe.yaml: train.batch_size is 0")


def test_a_message_that_quotes_something_long_keeps_its_beginning_and_its_advice() -> None:
    found = str(UserError(f"a.csv, row 7, column 'books': {'x' * 1_000_000!r} is not 0 or 1"))
    assert found == f"a.csv, row 7, column 'books': '{'x' * 50}...' is not 0 or 1"
    listed = str(UserError(f"a.csv: the values are {', '.join(f'value {i}' for i in range(9999))}; use fewer"))
    assert listed.startswith("a.csv: the values are value 0, value 1")
    assert listed.endswith("; use fewer")
    word = str(UserError(f"train.{'#' * 900} is not a key; did you mean loss?"))
    assert word.startswith("train.####")
    assert word.endswith("... is not a key; did you mean loss?")
    assert max(map(len, (found, listed, word))) < 293


def test_of_a_long_path_the_end_is_kept_and_all_else_that_a_message_says() -> None:
    more = "set one key or another, " * 7
    words = f"no memory, which needs about 3.0 GiB; see https://example.org/a/b/c/d; {more}please"
    assert one_sentence(f"{'/some/folder' * 7}/data/recipe.yaml: {words}") == f".../folder/data/recipe.yaml: {words}"
    windows = "\\".join(["C:", *["folder"] * 12, "data", "recipe.yaml"])
    assert one_sentence(f"{windows}: {words}") == f"...\\folder\\data\\recipe.yaml: {words}"
    short = f"/data/recipe.yaml: {words}"
    assert one_sentence(short) == short


def test_a_message_that_fits_is_not_changed() -> None:
    message = f"{'/a/long/path' * 12}/recipe.yaml: exp.run_name is '{'n' * 60}'; choose another name"
    assert len(message) < 290
    assert str(UserError(message)) == message


def test_a_message_is_one_line_and_harmless_to_a_terminal() -> None:
    found = str(UserError("the label 'a\x1b[2J\u202eb\ud800'\nis not\tknown"))
    assert found == r"the label 'a\x1b[2J\u202eb\ud800' is not known"
