"""YAML that people write by hand, read strictly: no value is silently another one, and no file takes long to read.

Differences to YAML 1.1 as PyYAML reads it: a key may occur once; dates stay text; `010` and `1:30:20` stay text,
instead of becoming 8 and 5420; a number remembers how it was written; only plain types can be tagged; size, depth and
the number of values are limited, also after aliases are expanded.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

LARGEST_FILE = 4 << 20
DEEPEST = 30
MOST_VALUES = 50_000
LONGEST_NUMBER = 40

_Base: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq", "merge")}


class YamlProblem(ValueError):
    """Why a text cannot be read, and in which line, counted from 1, if that is known."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.line = line


class WrittenInt(int):
    """A whole number that remembers how it was written."""

    written: str


class WrittenFloat(float):
    """A number that remembers how it was written."""

    written: str


def read_yaml(path: Path) -> Any:
    """The value in a YAML file.

    Raises
    ------
    OSError
        If the file cannot be read.
    YamlProblem
        If it is too large, not UTF-8, or not strict YAML.
    """
    with path.open("rb") as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise YamlProblem(f"it has more than {LARGEST_FILE >> 20} MiB")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise YamlProblem(f"it is not UTF-8 (byte {error.start}: {error.reason})") from None
    return parse_yaml(text)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text. Numbers are `WrittenInt` and `WrittenFloat`.

    Raises
    ------
    YamlProblem
        If it is not strict YAML.

    Examples
    --------
    >>> parse_yaml("{seeds: [1, 010], started: 2026-02-30}")
    {'seeds': [1, '010'], 'started': '2026-02-30'}
    """
    try:
        _check_size(text)
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlProblem(error.problem or "it has an error", mark.line + 1 if mark else None) from None
    except yaml.YAMLError as error:
        raise YamlProblem(str(error).splitlines()[0]) from None
    except UnicodeEncodeError:
        raise YamlProblem("it has characters that are no text") from None


def _check_size(text: str) -> None:
    """Refuse deep nesting, and more values than anybody writes, before anything is built from them."""
    sizes: dict[str, int | None] = {}
    # Of each open collection: its anchor, and the number of values in it so far.
    open_: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=_Base):
        line = event.start_mark.line + 1 if event.start_mark else None
        if isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, 1))
            if event.anchor:
                sizes[event.anchor] = None
            if len(open_) > DEEPEST + 1:
                raise YamlProblem(f"values are nested more than {DEEPEST} deep", line)
            continue
        count = 0
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, count = open_.pop()
            if anchor:
                sizes[anchor] = count
        elif isinstance(event, yaml.AliasEvent):
            known = sizes.get(event.anchor or "", 0)
            if known is None:
                raise YamlProblem(f"*{event.anchor} stands inside &{event.anchor}", line)
            count = known
        elif isinstance(event, yaml.ScalarEvent):
            count = 1
            if event.anchor:
                sizes[event.anchor] = 1
        open_[-1] = (open_[-1][0], open_[-1][1] + count)
        if open_[-1][1] > MOST_VALUES:
            raise YamlProblem(f"it has more than {MOST_VALUES} values", line)


class _Loader(_Base):  # type: ignore[valid-type,misc]
    """Builds values strictly."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [
            (tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in ("int", "float", "timestamp")
        ]
        for first, resolvers in _Base.yaml_implicit_resolvers.items()
    }

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag not in _PLAIN_TAGS:
            raise _problem(f"{node.tag} is not a type that may stand here", node)
        return super().construct_object(node, deep=deep)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise _problem(f"the key {key.value[:40]!r} occurs twice", key)
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep=deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        number = WrittenInt(_number(super().construct_yaml_int, node))
        number.written = node.value
        return number

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        number = WrittenFloat(_number(super().construct_yaml_float, node))
        number.written = node.value
        return number


def _problem(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _number(construct: Any, node: yaml.ScalarNode) -> Any:
    """A number, unless it is too long or, with a tag such as ``!!int``, none."""
    value = node.value if isinstance(node, yaml.ScalarNode) else ""
    if len(value) > LONGEST_NUMBER:
        raise _problem(f"a number with more than {LONGEST_NUMBER} digits", node)
    try:
        return construct(node)
    except (ValueError, IndexError, OverflowError):
        raise _problem(f"{value!r} is not a number", node) from None


for _tag, _pattern, _first in (
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)|[-+]?0x[0-9a-fA-F_]+|[-+]?0b[01_]+", "-+0123456789"),
    ("float", r"[-+]?(?:0|[1-9][0-9_]*)\.[0-9_]*(?:[eE][-+][0-9]+)?|[-+]?\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?"
              r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+0123456789."),
):  # fmt: skip
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
