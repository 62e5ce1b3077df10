"""Recipes: one YAML file says what is learned; this module loads it strictly.

A recipe has four sections, `data`, `model`, `train` and `exp`, each a dataclass below. Loading refuses
unknown keys (offering the nearest known one), wrong types and impossible values, always naming the file
and the key. Any value can be overridden from the command line as ``section.key=value``.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from llmcls import UserMistake

ProblemType = Literal["multi_label_classification", "single_label_classification", "binary_classification"]
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass
class DataSection:
    """Where the texts are and which columns hold what."""

    dataset_name: str
    train_csv: str
    label_columns: list[str]
    val_csv: str | None = None
    test_csv: str | None = None
    id_column: str | None = None
    text_fields: list[str] | None = None
    target_text_column: str | None = None
    text_separator: str = "\n"
    max_length: int = 512


@dataclass
class ModelSection:
    """Which base model, how it is stored, and what of it is trained."""

    model_name: str
    hf_token: str | None = field(default=None, repr=False)
    revision: str | None = None
    trust_remote_code: bool = False
    problem_type: ProblemType = "multi_label_classification"
    use_4bit: bool = False
    torch_dtype: Dtype = "bfloat16"
    lora_r: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.05
    lora_target_modules: list[str] = field(default_factory=lambda: ["all-linear"])


@dataclass
class TrainSection:
    """How it is trained."""

    batch_size: int = 4
    gradient_accumulation_steps: int = 8
    micro_batch_tokens: int | Literal["auto"] | None = None
    packing: bool | None = None
    eval_batch_size: int | None = None
    num_train_epochs: int = 3
    max_steps: int | None = None
    learning_rate: float = 2e-4
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = 0.06
    optim_8bit_when_4bit: bool = True
    gradient_checkpointing: bool | None = None
    eval_steps: int | None = None
    logging_steps: int = 10
    early_stopping_patience: int | None = None
    metric_for_best_model: str = "f1_micro"
    save_total_limit: int = 1
    train_metrics_rows: int = 2000
    report_to: list[Literal["tensorboard", "wandb"]] = field(default_factory=lambda: ["tensorboard"])


@dataclass
class ExpSection:
    """Where the results go and which seeds are run."""

    output_root: str = "outputs"
    seeds: list[int] = field(default_factory=lambda: [1])
    run_name: str | None = None
    overwrite: bool = False


@dataclass
class Recipe:
    """A whole experiment, checked. ``source`` is the file it came from, for error sentences."""

    data: DataSection
    model: ModelSection
    train: TrainSection
    exp: ExpSection
    source: str = "recipe"

    def mistake(self, key: str, problem: str) -> UserMistake:
        """An error about ``key`` ("section.key") of this recipe, ready to raise."""
        return UserMistake(f"{self.source}: {key} {problem}")


SECTIONS: dict[str, type] = {
    "data": DataSection,
    "model": ModelSection,
    "train": TrainSection,
    "exp": ExpSection,
}


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read, override and check a recipe.

    Parameters
    ----------
    path: the YAML file.
    overrides: strings ``section.key=value`` (``key=value`` where only one section has that key); the
        value is read as YAML, so ``exp.seeds=[1,2]`` and ``model.use_4bit=true`` mean what they say.

    Raises
    ------
    UserMistake: naming the file, the key, the value found, what is allowed and the nearest known key.
    """
    source = str(path)
    raw = _read_yaml(Path(path))
    for name in raw:
        if name not in SECTIONS:
            raise UserMistake(f"{source}: {_unknown(str(name), SECTIONS, 'a section of a recipe')}")
    for name in SECTIONS:
        if raw.get(name) is None:
            raw[name] = {}
        if not isinstance(raw[name], dict):
            raise UserMistake(f"{source}: section {name} must hold `key: value` lines, not {raw[name]!r}")
    for override in overrides or []:
        section, key, value = _parse_override(override)
        raw[section][key] = value
    sections = {name: _build_section(source, name, kind, raw[name]) for name, kind in SECTIONS.items()}
    recipe = Recipe(**sections, source=source)
    _check_values(recipe)
    return recipe


def recipe_to_dict(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The resolved recipe as plain values, without the secret: safe to write and to log."""
    sections = {name: dataclasses.asdict(getattr(recipe, name)) for name in SECTIONS}
    sections["model"]["hf_token"] = None
    return sections


def recipe_to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `load_recipe` reads back."""
    return yaml.safe_dump(recipe_to_dict(recipe), sort_keys=False, allow_unicode=True)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        have = f"; {path.parent} has {', '.join(near)}" if near else ""
        raise UserMistake(f"{path}: no such recipe file{have}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserMistake(f"{path}: the recipe cannot be read: {error}") from None
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if getattr(error, "problem_mark", None) else ""
        reason = getattr(error, "problem", None) or error
        raise UserMistake(f"{path}{where}: not valid YAML: {reason}") from None
    if not isinstance(raw, dict):
        raise UserMistake(f"{path}: a recipe needs the sections {', '.join(SECTIONS)}; this file has none")
    return raw


def _parse_override(override: str) -> tuple[str, str, Any]:
    target, equals, text = override.partition("=")
    target = target.strip()
    if not equals:
        raise UserMistake(f"command line: {override!r} is not an override; write section.key=value")
    section, dot, key = target.partition(".")
    if not dot:
        key = target
        homes = [n for n, kind in SECTIONS.items() if key in {f.name for f in dataclasses.fields(kind)}]
        if not homes:
            known = [f"{n}.{f.name}" for n, kind in SECTIONS.items() for f in dataclasses.fields(kind)]
            raise UserMistake(f"command line: {_unknown(target, known, 'a recipe key')}")
        section = homes[0]
    if section not in SECTIONS:
        raise UserMistake(f"command line: {_unknown(section, SECTIONS, 'a section of a recipe')}")
    names = [f.name for f in dataclasses.fields(SECTIONS[section])]
    if key not in names:
        raise UserMistake(f"command line: {_unknown(f'{section}.{key}', [f'{section}.{n}' for n in names])}")
    try:
        return section, key, yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserMistake(f"command line: the value of {target} is not valid YAML: {text!r}") from None


def _unknown(name: str, known: typing.Iterable[str], kind: str = "a key") -> str:
    known = list(known)
    short = {k.rpartition(".")[2]: k for k in known}
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    near = near or [short[m] for m in difflib.get_close_matches(name.rpartition(".")[2], short, n=1)]
    hint = f"did you mean {near[0].rpartition('.')[2]}?" if near else f"known are {', '.join(known)}"
    return f"{name} is not {kind}; {hint}"


def _build_section(source: str, name: str, kind: type, raw: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(kind)
    for key in raw:
        if key not in hints:
            raise UserMistake(f"{source}: {_unknown(f'{name}.{key}', [f'{name}.{h}' for h in hints])}")
    values = {}
    for f in dataclasses.fields(kind):
        where = f"{source}: {name}.{f.name}"
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if raw.get(f.name) is None:
            if required:
                raise UserMistake(f"{where} is missing; it must be {_describe(hints[f.name])}")
            # An empty value (`text_fields:`) means the default, as in the reference recipes.
            continue
        values[f.name] = _convert(where, raw[f.name], hints[f.name])
    return kind(**values)


def _convert(where: str, value: Any, hint: Any) -> Any:
    """``value`` as ``hint`` asks, or a `UserMistake`; converts only what cannot be misunderstood."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        alternatives = [a for a in typing.get_args(hint) if a is not type(None)]
        words = [word for a in alternatives if typing.get_origin(a) is Literal for word in typing.get_args(a)]
        return value if value is None or value in words else _convert(where, value, alternatives[0])
    if origin is Literal:
        if value in typing.get_args(hint):
            return value
        near = difflib.get_close_matches(str(value), [str(a) for a in typing.get_args(hint)], n=1, cutoff=0.5)
        raise UserMistake(
            f"{where} is {value!r}; it must be {_describe(hint)}" + (f"; did you mean {near[0]}?" if near else "")
        )
    if origin is list:
        (inner,) = typing.get_args(hint)
        items = value if isinstance(value, list) else [value]
        return [_convert(f"{where}[{i}]" if len(items) > 1 else where, v, inner) for i, v in enumerate(items)]
    converted = _CONVERTERS[hint](value)
    if converted is None:
        advice = " (put it in quotes)" if hint is str else ""
        raise UserMistake(f"{where} is {value!r}; it must be {_describe(hint)}{advice}")
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


def _describe(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return f"{_describe(next(a for a in typing.get_args(hint) if a is not type(None)))} or null"
    if origin is Literal:
        return "one of " + ", ".join(str(a) for a in typing.get_args(hint))
    if origin is list:
        return f"a list, each item {_describe(typing.get_args(hint)[0])}"
    return {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[hint]


def _expand(where: str, text: str) -> str:
    """``~`` and ``${VAR}`` / ``${VAR:-default}`` replaced; an unset variable without default is a mistake."""

    def replace(match: re.Match[str]) -> str:
        value = os.environ.get(match["name"])
        if value:
            return value
        if match["default"] is None:
            raise UserMistake(f"{where} uses ${{{match['name']}}}, which is not set; set the environment variable")
        return match["default"]

    text = re.sub(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}", replace, text)
    return os.path.expanduser(text) if text.startswith("~") else text


def _check_values(recipe: Recipe) -> None:
    """Refuse values of the right type that cannot work."""
    data, model, train, exp = recipe.data, recipe.model, recipe.train, recipe.exp
    at_least = [
        ("data.max_length", data.max_length, 1),
        ("model.lora_r", model.lora_r, 0),
        ("train.batch_size", train.batch_size, 1),
        ("train.gradient_accumulation_steps", train.gradient_accumulation_steps, 1),
        ("train.micro_batch_tokens", 1 if train.micro_batch_tokens == "auto" else train.micro_batch_tokens, 1),
        ("train.eval_batch_size", train.eval_batch_size, 1),
        ("train.num_train_epochs", train.num_train_epochs, 1),
        ("train.max_steps", train.max_steps, 1),
        ("train.weight_decay", train.weight_decay, 0),
        ("train.max_grad_norm", train.max_grad_norm, 0),
        ("train.eval_steps", train.eval_steps, 1),
        ("train.logging_steps", train.logging_steps, 1),
        ("train.early_stopping_patience", train.early_stopping_patience, 1),
        ("train.save_total_limit", train.save_total_limit, 1),
        ("train.train_metrics_rows", train.train_metrics_rows, 0),
    ]
    for key, value, lowest in at_least:
        if value is not None and not value >= lowest:
            raise recipe.mistake(key, f"is {value}; it must be at least {lowest}")
    if not 0 < train.learning_rate < 10:
        raise recipe.mistake("train.learning_rate", f"is {train.learning_rate}; it must be above 0 and below 10")
    if not 0 <= model.lora_dropout < 1:
        raise recipe.mistake("model.lora_dropout", f"is {model.lora_dropout}; it must be from 0 to below 1")
    if not 0 <= train.warmup_ratio < 1:
        raise recipe.mistake("train.warmup_ratio", f"is {train.warmup_ratio}; it must be from 0 to below 1")
    if model.lora_r > 0 and not model.lora_alpha > 0:
        raise recipe.mistake("model.lora_alpha", f"is {model.lora_alpha}; it must be above 0")
    if model.use_4bit and model.lora_r == 0:
        raise recipe.mistake(
            "model.lora_r",
            "is 0 (full fine-tuning) while model.use_4bit is true: 4-bit weights cannot be trained; "
            "set lora_r to 1 or more, or model.use_4bit=false",
        )
    if model.lora_r > 0 and not model.lora_target_modules:
        raise recipe.mistake("model.lora_target_modules", "is empty; name modules, or [all-linear]")
    _check_columns(recipe)
    if not exp.seeds:
        raise recipe.mistake("exp.seeds", "is empty; name at least one seed")
    if len(set(exp.seeds)) != len(exp.seeds) or min(exp.seeds) < 0:
        raise recipe.mistake("exp.seeds", f"is {exp.seeds}; seeds must be 0 or more and each named once")
    if exp.run_name is not None and not re.fullmatch(r"[\w=.,+@-]+", exp.run_name):
        raise recipe.mistake("exp.run_name", f"is {exp.run_name!r}; use letters, digits and any of = . , + @ - _")
    needs_validation = [("train.early_stopping_patience", train.early_stopping_patience)]
    for key, value in needs_validation:
        if value is not None and data.val_csv is None:
            raise recipe.mistake(key, f"is {value}, which needs data.val_csv; name a validation file or set {key}=null")


def _check_columns(recipe: Recipe) -> None:
    data = recipe.data
    if not data.text_fields and not data.target_text_column:
        raise recipe.mistake(
            "data.text_fields", "and data.target_text_column are both empty; name the column(s) that hold the text"
        )
    if not data.label_columns:
        raise recipe.mistake("data.label_columns", "is empty; name the label columns")
    doubled = sorted({c for c in data.label_columns if data.label_columns.count(c) > 1})
    if doubled:
        raise recipe.mistake("data.label_columns", f"names {', '.join(doubled)} twice")
    text_columns = text_columns_of(data)
    for column in data.label_columns:
        if column in text_columns or column == data.id_column:
            raise recipe.mistake("data.label_columns", f"names {column!r}, which is also the id or a text column")
    if recipe.model.problem_type != "multi_label_classification" and len(data.label_columns) != 1:
        raise recipe.mistake(
            "data.label_columns",
            f"names {len(data.label_columns)} columns; {recipe.model.problem_type} needs exactly one, "
            "which holds the class",
        )


def text_columns_of(data: DataSection) -> list[str]:
    """The columns that make up a text: ``text_fields``, or else ``target_text_column``."""
    return list(data.text_fields) if data.text_fields else [str(data.target_text_column)]
