"""Recipes: one YAML file says what is learned; this module loads it strictly.

A recipe has four sections, `data`, `model`, `train` and `exp`, each a dataclass of `llmcls.recipe.schema`. Loading
refuses unknown keys (offering the nearest known one), wrong types and impossible values, always naming the file and
the key. Any value can be overridden from the command line as ``section.key=value``.
"""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any

import yaml

from llmcls.common.user_error import UserError
from llmcls.recipe.checks import check_recipe
from llmcls.recipe.convert import convert, describe, unknown
from llmcls.recipe.schema import SECTIONS, Recipe


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read, override and check a recipe.

    Parameters
    ----------
    path: the YAML file.
    overrides: strings ``section.key=value`` (``key=value`` where only one section has that key); the
        value is read as YAML, so ``exp.seeds=[1,2]`` and ``model.use_4bit=true`` mean what they say.

    Raises
    ------
    UserError: naming the file, the key, the value found, what is allowed and the nearest known key.
    """
    source = str(path)
    raw = _read_yaml(Path(path))
    for name in raw:
        if name not in SECTIONS:
            raise UserError(f"{source}: {unknown(str(name), SECTIONS, 'a section of a recipe')}")
    for name in SECTIONS:
        if raw.get(name) is None:
            raw[name] = {}
        if not isinstance(raw[name], dict):
            raise UserError(f"{source}: section {name} must hold `key: value` lines, not {raw[name]!r}")
    for override in overrides or []:
        section, key, value = _parse_override(override)
        raw[section][key] = value
    sections = {name: _build_section(source, name, kind, raw[name]) for name, kind in SECTIONS.items()}
    recipe = Recipe(**sections, source=source)
    check_recipe(recipe)
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
        raise UserError(f"{path}: no such recipe file{have}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the recipe cannot be read: {error}") from None
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or error
        raise UserError(f"{path}{where}: not valid YAML: {reason}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a recipe needs the sections {', '.join(SECTIONS)}; this file has none")
    return raw


def _parse_override(override: str) -> tuple[str, str, Any]:
    target, equals, text = override.partition("=")
    target = target.strip()
    if not equals:
        raise UserError(f"command line: {override!r} is not an override; write section.key=value")
    section, dot, key = target.partition(".")
    if not dot:
        key = target
        homes = [n for n, kind in SECTIONS.items() if key in {f.name for f in dataclasses.fields(kind)}]
        if not homes:
            known = [f"{n}.{f.name}" for n, kind in SECTIONS.items() for f in dataclasses.fields(kind)]
            raise UserError(f"command line: {unknown(target, known, 'a recipe key')}")
        section = homes[0]
    if section not in SECTIONS:
        raise UserError(f"command line: {unknown(section, SECTIONS, 'a section of a recipe')}")
    names = [f.name for f in dataclasses.fields(SECTIONS[section])]
    if key not in names:
        raise UserError(f"command line: {unknown(f'{section}.{key}', [f'{section}.{n}' for n in names])}")
    try:
        return section, key, yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"command line: the value of {target} is not valid YAML: {text!r}") from None


def _build_section(source: str, name: str, kind: type, raw: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(kind)
    for key in raw:
        if key not in hints:
            raise UserError(f"{source}: {unknown(f'{name}.{key}', [f'{name}.{h}' for h in hints])}")
    values = {}
    for f in dataclasses.fields(kind):
        where = f"{source}: {name}.{f.name}"
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if raw.get(f.name) is None:
            if required:
                raise UserError(f"{where} is missing; it must be {describe(hints[f.name])}")
            # An empty value (`text_fields:`) means the default, as in the reference recipes.
            continue
        values[f.name] = convert(where, raw[f.name], hints[f.name])
    return kind(**values)
