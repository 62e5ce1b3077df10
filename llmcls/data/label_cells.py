"""The cells of a label column as people write them: lists of names, names with a separator, or single names."""

from __future__ import annotations

import ast
import functools
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable

# What a 0/1 cell can be. Excel and R write capitals.
TRUTH = {
    "0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "False": 0.0, "True": 1.0, "false": 0.0, "true": 1.0, "FALSE": 0.0,
    "TRUE": 1.0,
}  # fmt: skip
# What separates the labels of a cell, where it is not said.
SEPARATORS = ("|", ";", ",", "\t", "\n")
_ITEM = re.compile(r"""\s*(?:('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|([^\s,'"\[\](){}]+))\s*,?""", re.DOTALL)
# How numpy 2 writes the items of a list of its own texts.
_NUMPY = re.compile(r"np\.\w+\(([^()]*)\)")


@functools.lru_cache(maxsize=100_000)
def list_items(cell: str) -> tuple[str, ...] | None:
    r"""The items of a cell that is written as a list by JSON, Python, pandas or numpy; None for other cells.

    Examples
    --------
    >>> list_items("['joy', 'love']"), list_items('["joy"]'), list_items("['joy' 'love']"), list_items("[0, 3]")
    (('joy', 'love'), ('joy',), ('joy', 'love'), ('0', '3'))
    >>> list_items("[]"), list_items("{'joy'}"), list_items("[urgent]"), list_items("joy, love")
    ((), ('joy',), None, None)
    """
    text = cell.strip()
    if len(text) < 2 or text[0] + text[-1] not in ("[]", "()", "{}"):
        return None
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return _python_items(text)
    if not isinstance(parsed, list) or any(isinstance(item, list | dict) for item in parsed):
        return None
    return tuple(name for item in parsed if item is not None and (name := str(item).strip()))


def _python_items(text: str) -> tuple[str, ...] | None:
    """The items of a list, tuple or set as Python or numpy writes it. Items without quotes are numbers."""
    inside, items, position = _NUMPY.sub(r"\1", text[1:-1]).strip(), [], 0
    while position < len(inside):
        match = _ITEM.match(inside, position)
        if match is None:
            return None
        quoted, bare = match.groups()
        if quoted is None and bare not in ("None", "nan") and not re.fullmatch(r"-?\d+(\.\d*)?", bare):
            return None
        if quoted is not None:
            items.append(_unquoted(quoted).strip())
        elif bare not in ("None", "nan"):
            items.append(bare)
        position = match.end()
    # Braces and parentheses without quotes are names, such as "(other)" and "(1)".
    if text[0] != "[" and not any(quote in inside for quote in "'\""):
        return None
    return tuple(filter(None, items))


def _unquoted(quoted: str) -> str:
    try:
        return str(ast.literal_eval(quoted))
    except (ValueError, SyntaxError):
        return quoted[1:-1]


def soft_cell(cell: str) -> dict[str, float] | None:
    r"""The probabilities in a cell that gives them by name; None for other cells.

    Examples
    --------
    >>> soft_cell('{"joy": 0.7, "love": 0.3}'), soft_cell("{'joy': 1, 'love': None}"), soft_cell("{'joy'}")
    ({'joy': 0.7, 'love': 0.3}, {'joy': 1.0}, None)
    """
    text = cell.strip()
    if not (text.startswith("{") and text.endswith("}")):
        return None
    try:
        # JSON, or what Python makes of the objects of a JSONL file, which have None for names of other rows.
        parsed = json.loads(text) if '"' in text else ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    if not isinstance(parsed, dict):
        return None
    numbers = {str(name).strip(): p for name, p in parsed.items() if p is not None}
    if any(isinstance(p, bool) or not isinstance(p, int | float) for p in numbers.values()):
        return None
    try:
        return {name: float(p) for name, p in numbers.items()}
    except OverflowError:
        return None


def names_of_cells(values: Iterable[str], lists: bool = False) -> list[str]:
    """Different cells, sorted, with the names of those that give probabilities instead of them.

    Parameters
    ----------
    values : iterable of str
    lists : bool
        Whether the names become lists if there are no other cells. With other cells, they become what those are.

    Examples
    --------
    >>> names_of_cells(["joy", '{"love": 0.9, "joy": 0.1}']), names_of_cells(["['joy']", '{"love": 0.9}'])
    (['joy', 'love'], ['["love"]', "['joy']"])
    """
    plain, names = set(), set()
    for value in values:
        soft = soft_cell(value)
        plain |= {value} if soft is None else set()
        names |= set(soft or ())
    lists = are_lists(plain) or (lists and not any(plain))
    return sorted(plain | ({json.dumps([name]) for name in names} if lists else names))


def probability(text: str) -> float | None:
    """The number from 0 to 1 in a cell, or None.

    Examples
    --------
    >>> probability("0.7"), probability("TRUE"), probability("1.2"), probability("often")
    (0.7, 1.0, None, None)
    """
    if text in TRUTH:
        return TRUTH[text]
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None


def are_lists(values: Iterable[str]) -> bool:
    """Whether all cells that are not empty are lists, and at least one has an item."""
    items = [list_items(value) for value in values if value]
    return any(items) and all(found is not None for found in items)


def are_vectors(values: Iterable[str]) -> int | None:
    """The length of the cells, if they are vectors of 0 and 1 such as ``[0, 1, 1]``; else None.

    Examples
    --------
    >>> are_vectors(["[0, 1, 1]", "[1, 0, 0]"]), are_vectors(["[0, 3]", "[1]"])
    (3, None)
    """
    items = [list_items(value) or () for value in values if value]
    lengths = {len(found) for found in items}
    truth = all(item in ("0", "1", "0.0", "1.0", "0.", "1.") for found in items for item in found)
    return lengths.pop() if truth and len(lengths) == 1 and max(lengths) > 1 and len(items) > 1 else None


def split_names(cell: str, separator: str) -> list[str]:
    """The names in a cell, stripped; empty ones are skipped."""
    return [name for part in cell.split(separator) if (name := part.strip())]


def separator_in(values: Collection[str]) -> str | None:
    """The separator that different cells seem to have between their names; None if their names are single ones.

    Cells that are split by the right separator share their names: there are no more names than cells. A separator that
    is a part of names makes more of them.

    Examples
    --------
    >>> separator_in(["a|b", "b", "a"]), separator_in(["Arts, Crafts", "Toys, Games"])
    ('|', None)
    """
    best, most = None, 0
    for separator in SEPARATORS:
        cells = [value for value in values if separator in value]
        times = Counter(name for value in values for name in set(split_names(value, separator)))
        shared = any(times[name] > 1 for cell in cells for name in split_names(cell, separator))
        if shared and len(times) <= len(values) and len(cells) > most:
            best, most = separator, len(cells)
    return best


def example_of(values: Iterable[str], separator: str = "") -> str:
    """A short cell to show, with the separator in it.

    Examples
    --------
    >>> example_of(["a", "a|b"], "|")
    'a|b'
    """
    found = min((value for value in values if value and separator in value), key=lambda v: (len(v), v))
    return found if len(found) <= 40 else f"{found[:39]}…"


def look_alikes(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of names that differ only in case, spaces, dashes or underscores.

    Examples
    --------
    >>> look_alikes(["Top up", "top_up", "card"])
    [('Top up', 'top_up')]
    """
    seen: dict[str, str] = {}
    pairs = []
    for name in names:
        plain = re.sub(r"[\s_-]+", "", name).casefold()
        if plain in seen:
            pairs.append((seen[plain], name))
        seen.setdefault(plain, name)
    return pairs
