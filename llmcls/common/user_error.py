"""The exception for mistakes that the user can correct."""

from __future__ import annotations

import re

# With `error: ` in front, a message stays below 300 characters.
LONGEST = 290
_LONGEST_VALUE = 50


class UserError(Exception):
    """A mistake that the user can correct: the message says what is wrong, where, and what to do.

    The message becomes one line that can be printed, and is shortened if it quotes something long.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_sentence(message))


def one_sentence(message: str) -> str:
    """A message on one line, without characters that change a terminal, of at most `LONGEST` characters.

    Long quoted values are shortened first, then paths, then long words, then the middle.

    Parameters
    ----------
    message : str

    Returns
    -------
    str

    Examples
    --------
    >>> one_sentence("a.csv, row 1: 'a\\x1b[31m' is\\nnot 0 or 1")
    "a.csv, row 1: 'a\\\\x1b[31m' is not 0 or 1"
    """
    # What is longer than any message is cut first, so that a value of megabytes costs no time.
    if len(message) > 20 * LONGEST:
        message = f"{message[: 10 * LONGEST]}...{message[-10 * LONGEST :]}"
    text = " ".join(message.split())
    text = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
    if len(text) > LONGEST:
        text = re.sub(rf"'([^']{{{_LONGEST_VALUE}}})[^']{{4,}}'", r"'\1...'", text)
    if len(text) > LONGEST:
        # The end of a path tells more than its beginning, and than what a sentence has in its middle.
        text = " ".join(map(_end_of_path, text.split(" ")))
    if len(text) > LONGEST:
        text = re.sub(rf"(\S{{{2 * _LONGEST_VALUE}}})\S{{4,}}?([;:,.]?)(?=\s|$)", r"\1...\2", text)
    if len(text) > LONGEST:
        tail = LONGEST // 2 - 5
        text = f"{text[: LONGEST - tail - 5]} ... {text[-tail:]}"
    return text


def _end_of_path(word: str) -> str:
    """A word, or if it is a long path, its last three parts."""
    parts = re.split(r"(?<=[/\\])", word)
    return f"...{parts[-4][-1]}{''.join(parts[-3:])}" if len(parts) > 4 and "://" not in word else word
