"""What of a recipe may leave this machine: its names, but not the folders in which files lie here."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any

from llmcls.recipe.schema import SPLIT_KEYS, Recipe

# A repository on the hub: one or two names of letters, digits, dots, dashes and underscores.
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


def hub_name(model_name: str) -> str | None:
    """The name of a model on the hub; None if it is a folder of this machine.

    Examples
    --------
    >>> hub_name("HuggingFaceTB/SmolLM2-135M"), hub_name("/home/me/model")
    ('HuggingFaceTB/SmolLM2-135M', None)
    """
    on_hub = _REPOSITORY.fullmatch(model_name) and not Path(model_name).is_dir()
    return model_name if on_hub else None


def without_paths(recipe: Recipe) -> Recipe:
    """The recipe with files and folders named by the last part of their path, and without ``hf_token``."""
    paths = {key: getattr(recipe.data, key) for key in SPLIT_KEYS.values()}
    files: dict[str, Any] = {key: _last_part(path) for key, path in paths.items() if path is not None}
    name = recipe.model.model_name
    return replace(
        recipe,
        data=replace(recipe.data, **files),
        model=replace(recipe.model, model_name=hub_name(name) or _last_part(name), hf_token=None),
        exp=replace(recipe.exp, output_root=_last_part(recipe.exp.output_root) or "outputs"),
    )


def _last_part(path: str) -> str:
    """The last part of a path of any system."""
    return PureWindowsPath(path).name
