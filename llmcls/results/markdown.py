"""Markdown with texts of users in it, which it shows as they are."""

from __future__ import annotations

import re

# ASCII punctuation that can be markup inside a line; written as character references it never is, in any dialect. Some
# dialects make links of "www.", and emphasis of "_" at the edge of a word.
_ACTIVE = re.compile(r"[!#$&*:<>@\[\\\]^`{|}~]|(?<=www)\.|(?<![^\W_])_|_(?![^\W_])", re.IGNORECASE)


def escaped(value: str) -> str:
    """Any text on one line of Markdown, which shows it as it is: no markup, no HTML, no link.

    Examples
    --------
    >>> escaped("a_b <i>*x*|")
    'a_b &#60;i&#62;&#42;x&#42;&#124;'
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in value).split())
    return _ACTIVE.sub(lambda found: f"&#{ord(found[0])};", line)


def code_block(language: str, code: str) -> str:
    """A code block, with a fence that its content cannot end."""
    fence = "`" * max([3, *(len(ticks) + 1 for ticks in re.findall("`+", code))])
    return f"{fence}{language}\n{code.rstrip()}\n{fence}"


def table(header: list[str], rows: list[list[str]], texts: int = 1) -> str:
    """A Markdown table; every cell is escaped.

    Parameters
    ----------
    header : list of str
    rows : list of list of str
    texts : int
        Columns of texts, from the left; the others are numbers, which are aligned to the right.
    """
    lines = [header, ["---"] * texts + ["---:"] * (len(header) - texts)]
    cells = [[escaped(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines + cells)
