"""Loading recipes: reads a YAML file, applies overrides, and checks every key and value.

A recipe has four sections, `data`, `model`, `train` and `exp`, each a dataclass of `llmcls.recipe.schema`. Unknown
keys, values of the wrong type and values that cannot work are errors that name the file and the key. For an unknown
key, the error suggests the most similar known one. The command line can override any value as ``section.key=value``.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import typing
from pathlib import Path
from typing import Any

import yaml

from llmcls.common.secrets import keep_secret
from llmcls.common.strict_yaml import YamlProblem, parse_yaml, read_yaml
from llmcls.common.user_error import UserError
from llmcls.recipe.checks import check_recipe
from llmcls.recipe.convert import convert, describe, unknown
from llmcls.recipe.schema import SECTIONS, SPLIT_KEYS, DataSection, Recipe

log = logging.getLogger(__name__)


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read, override and check a recipe.

    Parameters
    ----------
    path : str or Path
        The YAML file.
    overrides : list of str, optional
        ``section.key=value``, or ``key=value`` if only one section has that key. The value is parsed as YAML, so
        ``exp.seeds=[1,2]`` is a list and ``model.use_4bit=true`` is a boolean.

    Returns
    -------
    Recipe

    Raises
    ------
    UserError
        If the file cannot be read, a key is unknown or missing, or a value is not allowed. The message names the file,
        the key, the value and what is allowed.
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
            raise UserError(f"{source}: section {name} must contain `key: value` lines, not {type(raw[name]).__name__}")
    for override in overrides or []:
        section, key, value = _parse_override(override)
        raw[section][key] = value
    sections = {name: _build_section(source, name, kind, raw[name]) for name, kind in SECTIONS.items()}
    recipe = Recipe(**sections, source=source)
    _find_files(recipe.data, Path(path).parent)
    check_recipe(recipe)
    return recipe


def recipe_to_dict(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The recipe with all defaults as plain values. Contains no ``hf_token``, so it can be written and logged."""
    sections = {name: dataclasses.asdict(getattr(recipe, name)) for name in SECTIONS}
    sections["model"]["hf_token"] = None
    return sections


def recipe_to_yaml(recipe: Recipe) -> str:
    """The recipe with all defaults as YAML, which `load_recipe` can read. Contains no ``hf_token``."""
    return yaml.safe_dump(recipe_to_dict(recipe), sort_keys=False, allow_unicode=True)


def _read_yaml(path: Path) -> dict[str, Any]:
    """The top-level mapping of a recipe file, not checked further."""
    try:
        raw = read_yaml(path)
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = f"; {path.parent} contains {', '.join(near[:10])}" if near else ""
        raise UserError(f"{path}: no such recipe file{hint}") from None
    except YamlProblem as problem:
        if problem.line is None:
            raise UserError(f"{path}: the recipe cannot be read: {problem}") from None
        raise UserError(f"{path}, line {problem.line}: not valid YAML: {problem}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the recipe cannot be read: {error}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a recipe needs the sections {', '.join(SECTIONS)}; this file has none")
    return raw


def _parse_override(override: str) -> tuple[str, str, Any]:
    """Section, key and value of ``section.key=value`` or ``key=value``."""
    target, equals, text = override.partition("=")
    target = target.strip()
    if not equals:
        # Whatever stands behind the name of a key may be a secret.
        shown = re.sub(r"(?<=token).+", "...", override, flags=re.DOTALL)
        raise UserError(f"command line: {shown!r} is not an override; write section.key=value")
    section, dot, key = target.partition(".")
    if not dot:
        key = target
        matches = [n for n, kind in SECTIONS.items() if key in {f.name for f in dataclasses.fields(kind)}]
        if not matches:
            known = [f"{n}.{f.name}" for n, kind in SECTIONS.items() for f in dataclasses.fields(kind)]
            raise UserError(f"command line: {unknown(target, known, 'a recipe key')}")
        section = matches[0]
    if section not in SECTIONS:
        raise UserError(f"command line: {unknown(section, SECTIONS, 'a section of a recipe')}")
    names = [f.name for f in dataclasses.fields(SECTIONS[section])]
    if key not in names:
        raise UserError(f"command line: {unknown(f'{section}.{key}', [f'{section}.{n}' for n in names])}")
    secret = next(f.metadata["secret"] for f in dataclasses.fields(SECTIONS[section]) if f.name == key)
    if secret and text.strip() not in ("", "null", "~"):
        keep_secret(text)
        log.warning("other users of this machine can see %s on the command line; set HF_TOKEN instead", target)
    try:
        return section, key, parse_yaml(text)
    except YamlProblem as problem:
        shown = "" if secret else f": {problem} in {text!r}"
        raise UserError(f"command line: the value of {section}.{key} is not valid YAML{shown}") from None


def _build_section(source: str, name: str, kind: type, raw: dict[str, Any]) -> Any:
    """A section's dataclass ``kind`` with the converted values of ``raw`` and defaults for the other keys."""
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
            # An empty value, as in `text_fields:`, means the default.
            continue
        if f.metadata["secret"]:
            values[f.name] = _secret(where, raw[f.name])
        else:
            values[f.name] = convert(where, raw[f.name], hints[f.name], expand=not f.metadata["literal"])
    return kind(**values)


def _find_files(data: DataSection, folder: Path) -> None:
    """Let the files that are not in the working folder be those beside the recipe, if they are there."""
    for key in SPLIT_KEYS.values():
        name = getattr(data, key)
        if name and not os.path.exists(name) and os.path.exists(folder / name):
            setattr(data, key, str(folder / name))


def _secret(where: str, value: Any) -> str:
    """The value of a secret key, which no message shows from now on.

    Raises
    ------
    UserError
        If it is not text. The message does not show the value.
    """
    keep_secret(str(value))
    if isinstance(value, list | dict | bool):
        raise UserError(f"{where} must be text (put it in quotes)")
    text: str = convert(where, value, str)
    keep_secret(text)
    return text
