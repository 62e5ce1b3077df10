"""Strict conversion of YAML values to the types that the dataclasses of a recipe declare."""

from __future__ import annotations

import math
import os
import re
import types
import typing
from collections.abc import Callable
from typing import Any, Literal

from llmcls.common.nearest import nearest
from llmcls.common.user_error import UserError

# What keys are called elsewhere, where no similar spelling leads to them.
_ELSEWHERE = {
    "lr": "learning_rate", "epochs": "num_train_epochs", "num_epochs": "num_train_epochs", "bs": "batch_size",
    "per_device_train_batch_size": "batch_size", "accumulation": "gradient_accumulation_steps", "wd": "weight_decay",
    "scheduler": "lr_scheduler_type", "patience": "early_stopping_patience", "metric": "metric_for_best_model",
    "clip": "max_grad_norm", "max_seq_length": "max_length", "seq_len": "max_length", "model": "model_name",
    "name": "model_name", "base_model": "model_name", "load_in_4bit": "use_4bit", "dtype": "torch_dtype",
    "rank": "lora_r", "r": "lora_r", "alpha": "lora_alpha", "dropout": "lora_dropout",
    "target_modules": "lora_target_modules", "seed": "seeds", "output_dir": "output_root", "out": "output_root",
    "labels": "label_columns", "label": "label_columns", "text": "text_fields", "text_column": "text_fields",
    "sep": "csv_separator", "delimiter": "csv_separator", "separator": "csv_separator", "val_split": "validation_split",
    "valid_csv": "val_csv", "validation_csv": "val_csv", "dev_csv": "val_csv", "validation_file": "val_csv",
}  # fmt: skip


def unknown(name: str, known: typing.Iterable[str], kind: str = "a key") -> str:
    """The error message for a name that does not exist, with the most similar name that does.

    Parameters
    ----------
    name : str
        The unknown name, with or without a section: "section.key" or "key".
    known : iterable of str
        All names that exist.
    kind : str
        What ``name`` should be.

    Returns
    -------
    str

    Examples
    --------
    >>> unknown("train.learning_rte", ["train.learning_rate", "train.batch_size"])
    'train.learning_rte is not a key; did you mean learning_rate?'
    >>> unknown("dates", ["data", "model"], "a section of a recipe")
    'dates is not a section of a recipe; did you mean data?'
    >>> unknown("train.lr", ["train.learning_rate", "train.loss"])
    'train.lr is not a key; did you mean learning_rate?'
    """
    known = list(known)
    elsewhere = _ELSEWHERE.get(name.rpartition(".")[2].lower())
    near = next((k for k in known if k.rpartition(".")[2] == elsewhere), None)
    near = near or nearest(name, known) or nearest(name.rpartition(".")[2], [k.rpartition(".")[2] for k in known])
    if near:
        hint = f"did you mean {near.rpartition('.')[2]}?"
    elif len(known) <= 12:
        hint = f"use one of {', '.join(known)}"
    else:
        hint = "docs/recipes.md lists all keys"
    return f"{name} is not {kind}; {hint}"


def convert(where: str, value: Any, hint: Any, expand: bool = True) -> Any:
    """Convert a YAML value to the type of a recipe key. Only unambiguous conversions are allowed.

    Parameters
    ----------
    where : str
        The beginning of error messages: file and key.
    value : object
        What `llmcls.common.strict_yaml` returned.
    hint : type
        The annotation of the dataclass field: str, int, float, bool, a Literal, a list or dict of these, or one of
        these or None. A single value counts as a list of one.
    expand : bool
        Whether ``~`` and ``${VAR}`` are expanded in text, as in paths and names; not in separators and prompts.

    Returns
    -------
    object
        The converted value.

    Raises
    ------
    UserError
        If the value has the wrong type or is not allowed, or if it uses an environment variable that is not set.

    Examples
    --------
    >>> convert("recipe.yaml: train.learning_rate", "1e-4", float)
    0.0001
    >>> convert("recipe.yaml: exp.seeds", 3, list[int])
    [3]
    """
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        alternatives = [a for a in typing.get_args(hint) if a is not type(None)]
        words = [word for a in alternatives if typing.get_origin(a) is Literal for word in typing.get_args(a)]
        if value is None or value in words:
            return value
        if isinstance(value, str) and typing.get_origin(alternatives[0]) is dict and words:
            # A single word is meant to be one of the words.
            return convert(where, value, Literal[tuple(words)], expand)
        return convert(where, value, alternatives[0], expand)
    if origin is Literal:
        # YAML reads an unquoted `off` as false.
        if value is False and "off" in typing.get_args(hint):
            return "off"
        if value in typing.get_args(hint):
            return value
        near = nearest(str(value), [str(a) for a in typing.get_args(hint)], cutoff=0.5)
        raise UserError(
            f"{where} is {value!r}; it must be {describe(hint)}" + (f"; did you mean {near}?" if near else "")
        )
    if origin is list:
        (inner,) = typing.get_args(hint)
        items = value if isinstance(value, list) else [value]
        return [convert(f"{where}[{i}]" if len(items) > 1 else where, v, inner, expand) for i, v in enumerate(items)]
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{where} is {value!r}; it must be {describe(hint)}")
        key_hint, inner = typing.get_args(hint)
        return {
            convert(where, k, key_hint, expand): convert(f"{where}.{k}", v, inner, expand) for k, v in value.items()
        }
    converted = _CONVERTERS[hint](value)
    if converted is None:
        advice = " (put it in quotes)" if hint is str else ""
        raise UserError(f"{where} is {value!r}; it must be {describe(hint)}{advice}")
    if not isinstance(converted, str):
        return converted
    text = _expand(where, converted) if expand else converted
    # No file, column or tokenizer knows them: the end of a C string, and halves of a character.
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"{where} is {text!r}, which has a character that is no text; remove it")
    return text


def _to_text(value: Any) -> str | None:
    """Text, or a number as it was written; else None: YAML parses `yes`, `no` and `on` as booleans."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return value if isinstance(value, str) else getattr(value, "written", str(value))


def _to_float(value: Any) -> float | None:
    """A number, or the text of one, as float; else None."""
    if isinstance(value, bool):
        return None
    try:
        # YAML 1.1 parses `1e-4` as text, although a number is meant.
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


_CONVERTERS: dict[type, Callable[[Any], Any]] = {
    str: _to_text,
    int: lambda v: int(v) if not isinstance(v, bool | str) and _to_float(v) is not None and v == int(v) else None,
    float: _to_float,
    bool: lambda v: v if isinstance(v, bool) else None,
}


def describe(hint: Any) -> str:
    """The allowed values of a type, in words.

    Examples
    --------
    >>> describe(list[int])
    'a list, each item a whole number'
    >>> describe(Literal["mean", "max"])
    'one of mean, max'
    """
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return f"{describe(next(a for a in typing.get_args(hint) if a is not type(None)))} or null"
    if origin is Literal:
        return "one of " + ", ".join(str(a) for a in typing.get_args(hint))
    if origin is list:
        return f"a list, each item {describe(typing.get_args(hint)[0])}"
    if origin is dict:
        return f"`name: {describe(typing.get_args(hint)[1]).removeprefix('a ')}` lines"
    return {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[hint]


def _expand(where: str, text: str) -> str:
    """Expand ``~``, ``${VAR}`` and ``${VAR:-default}``; as in a shell, an empty variable takes the default."""

    def replace(match: re.Match[str]) -> str:
        value, default = os.environ.get(match["name"]), match["default"]
        if value or (value is not None and default is None):
            return value
        if default is None:
            raise UserError(f"{where} uses ${{{match['name']}}}, which is not set; set the environment variable")
        return default

    text = re.sub(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}", replace, text)
    return os.path.expanduser(text) if text.startswith("~") else text
