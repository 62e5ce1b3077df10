"""Strict reading of values: what a recipe's YAML holds, as the type its dataclass asks for, or one clear sentence."""

from __future__ import annotations

import difflib
import os
import re
import types
import typing
from collections.abc import Callable
from typing import Any, Literal

from llmcls.common.user_error import UserError


def unknown(name: str, known: typing.Iterable[str], kind: str = "a key") -> str:
    """Say that ``name`` is none of ``known``, and which of them is nearest."""
    known = list(known)
    short = {k.rpartition(".")[2]: k for k in known}
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    near = near or [short[m] for m in difflib.get_close_matches(name.rpartition(".")[2], short, n=1)]
    hint = f"did you mean {near[0].rpartition('.')[2]}?" if near else f"known are {', '.join(known)}"
    return f"{name} is not {kind}; {hint}"


def convert(where: str, value: Any, hint: Any) -> Any:
    """``value`` as ``hint`` asks, or a `UserError`; converts only what cannot be misunderstood."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        alternatives = [a for a in typing.get_args(hint) if a is not type(None)]
        words = [word for a in alternatives if typing.get_origin(a) is Literal for word in typing.get_args(a)]
        return value if value is None or value in words else convert(where, value, alternatives[0])
    if origin is Literal:
        if value in typing.get_args(hint):
            return value
        near = difflib.get_close_matches(str(value), [str(a) for a in typing.get_args(hint)], n=1, cutoff=0.5)
        raise UserError(
            f"{where} is {value!r}; it must be {describe(hint)}" + (f"; did you mean {near[0]}?" if near else "")
        )
    if origin is list:
        (inner,) = typing.get_args(hint)
        items = value if isinstance(value, list) else [value]
        return [convert(f"{where}[{i}]" if len(items) > 1 else where, v, inner) for i, v in enumerate(items)]
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{where} is {value!r}; it must be {describe(hint)}")
        key_hint, inner = typing.get_args(hint)
        return {convert(where, k, key_hint): convert(f"{where}.{k}", v, inner) for k, v in value.items()}
    converted = _CONVERTERS[hint](value)
    if converted is None:
        advice = " (put it in quotes)" if hint is str else ""
        raise UserError(f"{where} is {value!r}; it must be {describe(hint)}{advice}")
    return _expand(where, converted) if isinstance(converted, str) else converted


def _to_float(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        # YAML reads `1e-4` as text; nobody who writes it means text.
        return float(value)
    except (TypeError, ValueError):
        return None


_CONVERTERS: dict[type, Callable[[Any], Any]] = {
    # `yes`, `no`, `on` and dates are not text in YAML: guessing what was typed would be wrong half the time.
    str: lambda v: v if isinstance(v, str) else str(v) if type(v) in (int, float) else None,
    int: lambda v: int(v) if type(v) is int or (type(v) is float and v.is_integer()) else None,
    float: _to_float,
    bool: lambda v: v if isinstance(v, bool) else None,
}


def describe(hint: Any) -> str:
    """What a value must be, in words."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return f"{describe(next(a for a in typing.get_args(hint) if a is not type(None)))} or null"
    if origin is Literal:
        return "one of " + ", ".join(str(a) for a in typing.get_args(hint))
    if origin is list:
        return f"a list, each item {describe(typing.get_args(hint)[0])}"
    if origin is dict:
        return "`name: text` lines"
    return {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[hint]


def _expand(where: str, text: str) -> str:
    """``~`` and ``${VAR}`` / ``${VAR:-default}`` replaced; an unset variable without default is a mistake."""

    def replace(match: re.Match[str]) -> str:
        value = os.environ.get(match["name"])
        if value:
            return value
        if match["default"] is None:
            raise UserError(f"{where} uses ${{{match['name']}}}, which is not set; set the environment variable")
        return match["default"]

    text = re.sub(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}", replace, text)
    return os.path.expanduser(text) if text.startswith("~") else text
