"""Recipes: one YAML file says what is learned; this module loads it strictly.

A recipe has four sections, `data`, `model`, `train` and `exp`, each a dataclass of `llmcls.sections`. Loading refuses
unknown keys (offering the nearest known one), wrong types and impossible values, always naming the file
and the key. Any value can be overridden from the command line as ``section.key=value``.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llmcls import UserMistake
from llmcls.sections import DataSection, ExpSection, ModelSection, TrainSection
from llmcls.strict import convert, describe, unknown


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
            raise UserMistake(f"{source}: {unknown(str(name), SECTIONS, 'a section of a recipe')}")
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
            raise UserMistake(f"command line: {unknown(target, known, 'a recipe key')}")
        section = homes[0]
    if section not in SECTIONS:
        raise UserMistake(f"command line: {unknown(section, SECTIONS, 'a section of a recipe')}")
    names = [f.name for f in dataclasses.fields(SECTIONS[section])]
    if key not in names:
        raise UserMistake(f"command line: {unknown(f'{section}.{key}', [f'{section}.{n}' for n in names])}")
    try:
        return section, key, yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserMistake(f"command line: the value of {target} is not valid YAML: {text!r}") from None


def _build_section(source: str, name: str, kind: type, raw: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(kind)
    for key in raw:
        if key not in hints:
            raise UserMistake(f"{source}: {unknown(f'{name}.{key}', [f'{name}.{h}' for h in hints])}")
    values = {}
    for f in dataclasses.fields(kind):
        where = f"{source}: {name}.{f.name}"
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if raw.get(f.name) is None:
            if required:
                raise UserMistake(f"{where} is missing; it must be {describe(hints[f.name])}")
            # An empty value (`text_fields:`) means the default, as in the reference recipes.
            continue
        values[f.name] = convert(where, raw[f.name], hints[f.name])
    return kind(**values)


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
        ("train.checkpoint_layers", train.checkpoint_layers, 1),
        ("train.save_total_limit", train.save_total_limit, 1),
        ("train.train_metrics_rows", train.train_metrics_rows, 0),
        ("train.focal_gamma", train.focal_gamma, 0),
        ("train.asymmetric_gamma_positive", train.asymmetric_gamma_positive, 0),
        ("train.asymmetric_gamma_negative", train.asymmetric_gamma_negative, 0),
        ("train.pos_weight_cap", train.pos_weight_cap, 1),
        ("train.lora_plus_ratio", train.lora_plus_ratio, 1),
        ("train.threshold_shrinkage", train.threshold_shrinkage, 0),
        ("data.window_overlap", data.window_overlap, 0),
        ("data.max_windows", data.max_windows, 1),
    ]
    for key, value, lowest in at_least:
        if value is not None and not value >= lowest:
            raise recipe.mistake(key, f"is {value}; it must be at least {lowest}")
    between = [
        ("train.learning_rate", train.learning_rate, 0, 10, "above 0 and below 10", False),
        ("train.head_learning_rate", train.head_learning_rate, 0, 10, "above 0 and below 10", False),
        ("train.layer_decay", train.layer_decay, 0, 1 + 1e-12, "above 0 and at most 1", False),
        ("model.lora_dropout", model.lora_dropout, 0, 1, "from 0 to below 1", True),
        ("train.warmup_ratio", train.warmup_ratio, 0, 1, "from 0 to below 1", True),
        ("train.label_smoothing", train.label_smoothing, 0, 1, "from 0 to below 1", True),
        ("train.asymmetric_clip", train.asymmetric_clip, 0, 1, "from 0 to below 1", True),
    ]
    for key, value, low, high, words, closed in between:
        if value is not None and not (low <= value < high if closed else low < value < high):
            raise recipe.mistake(key, f"is {value}; it must be {words}")
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
    _check_variants(recipe)
    _check_columns(recipe)
    if not exp.seeds:
        raise recipe.mistake("exp.seeds", "is empty; name at least one seed")
    if len(set(exp.seeds)) != len(exp.seeds) or min(exp.seeds) < 0:
        raise recipe.mistake("exp.seeds", f"is {exp.seeds}; seeds must be 0 or more and each named once")
    if exp.run_name is not None and not re.fullmatch(r"[\w=.,+@-]+", exp.run_name):
        raise recipe.mistake("exp.run_name", f"is {exp.run_name!r}; use letters, digits and any of = . , + @ - _")
    needs_validation: list[tuple[str, Any]] = [("train.early_stopping_patience", train.early_stopping_patience)]
    needs_validation += [("train.calibration", train.calibration)]
    for key, value in needs_validation:
        if value is not None and data.val_csv is None:
            raise recipe.mistake(key, f"is {value}, which needs data.val_csv; name a validation file or set {key}=null")


def _check_variants(recipe: Recipe) -> None:
    """Refuse variants that do not go together, saying why."""
    data, model, train = recipe.data, recipe.model, recipe.train
    multi = model.problem_type == "multi_label_classification"
    if not multi:
        for key, used in (("train.loss", train.loss == "asymmetric"), ("data.label_separator", data.label_separator)):
            if used:
                raise recipe.mistake(key, f"is for multi_label_classification; this recipe is {model.problem_type}")
        if data.hierarchy_separator or train.at_least_one_label:
            key = "data.hierarchy_separator" if data.hierarchy_separator else "train.at_least_one_label"
            raise recipe.mistake(key, f"is for multi_label_classification; this recipe is {model.problem_type}")
    if model.lora_r == 0:
        lora_only = [
            ("model.lora_variant", model.lora_variant != "lora", "lora"),
            ("model.lora_layers", model.lora_layers is not None, "null"),
            ("train.lora_plus_ratio", train.lora_plus_ratio is not None, "null"),
        ]
        for key, used, default in lora_only:
            if used:
                raise recipe.mistake(key, f"needs an adapter, and model.lora_r is 0; set it to {default}")
    if data.truncation == "windows" and data.window_overlap >= data.max_length:
        raise recipe.mistake(
            "data.window_overlap", f"is {data.window_overlap}; it must be below data.max_length ({data.max_length})"
        )
    if data.prompt is not None and data.prompt.count("{text}") != 1:
        raise recipe.mistake("data.prompt", "must hold {text} exactly once, where the text goes")
    try:
        parse_objective(train.threshold_metric)
    except ValueError as error:
        raise recipe.mistake("train.threshold_metric", f"is {train.threshold_metric!r}; {error}") from None


def parse_objective(text: str) -> tuple[str, float]:
    """What thresholds are tuned for: ("f", beta) of ``f1``, ``f0.5``, ...; ("recall", p) of ``recall@precision=p``.

    Raises
    ------
    ValueError: says what can be written.
    """
    number = re.fullmatch(r"f(\d+(?:\.\d+)?)", text)
    if number and float(number[1]) > 0:
        return "f", float(number[1])
    precision = re.fullmatch(r"recall@precision=(0?\.\d+|1(?:\.0+)?)", text)
    if precision and float(precision[1]) > 0:
        return "recall", float(precision[1])
    raise ValueError("it must be f1, f0.5, f2 or any f<beta>, or recall@precision=0.9 (or another precision)")


def _check_columns(recipe: Recipe) -> None:
    data = recipe.data
    if not data.text_fields and not data.target_text_column:
        raise recipe.mistake(
            "data.text_fields", "and data.target_text_column are both empty; name the column(s) that hold the text"
        )
    if not data.label_columns:
        raise recipe.mistake("data.label_columns", "is empty; name the label columns")
    if data.label_separator and len(data.label_columns) != 1:
        raise recipe.mistake(
            "data.label_columns",
            f"names {len(data.label_columns)} columns; with data.label_separator it must name the one of all labels",
        )
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
