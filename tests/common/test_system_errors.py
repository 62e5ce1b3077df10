from __future__ import annotations

import errno

import pytest

from llmcls.common.system_errors import explain_system_error


@pytest.mark.parametrize(
    "number, sentence",
    [
        (errno.ENOSPC, "a/b.json: the disk is full; free some space"),
        (errno.EACCES, "a/b.json: may not be used by this user"),
        (errno.ENAMETOOLONG, "a/b.json: the path is longer than the system allows"),
    ],
)
def test_what_a_user_can_correct_is_a_sentence(number: int, sentence: str) -> None:
    assert str(explain_system_error(OSError(number, "words of the system", "a/b.json"))).startswith(sentence)


def test_what_only_a_programmer_understands_keeps_its_traceback() -> None:
    assert explain_system_error(OSError(errno.EBADF, "Bad file descriptor")) is None
    assert explain_system_error(OSError("no number")) is None


def test_an_error_without_a_file_is_a_sentence_too() -> None:
    assert str(explain_system_error(OSError(errno.ENOSPC, "x"))).startswith("the disk is full; ")
