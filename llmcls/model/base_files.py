"""The files of a pretrained model on this machine: what its checksums are of."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from llmcls.recipe.schema import ModelSection

# What decides how a text becomes a score: weights, configuration, tokenizer, and code if the recipe trusts it.
_WEIGHTS = (".safetensors", ".bin")
_OTHERS = (".json", ".model", ".txt", ".jinja", ".py")


def base_files(spec: ModelSection) -> dict[str, Path]:
    """The files of a pretrained model by name, in order; none if it is neither a folder nor in the cache of the hub.

    Parameters
    ----------
    spec : ModelSection

    Returns
    -------
    dict of str to Path
        Safetensors only, if there are any: nothing else is read then.
    """
    folder = base_folder(spec)
    if folder is None:
        return {}
    files = {p.name: p for p in sorted(folder.iterdir()) if p.is_file() and p.suffix in _WEIGHTS + _OTHERS}
    if any(name.endswith(_WEIGHTS[0]) for name in files):
        files = {name: path for name, path in files.items() if not name.endswith(_WEIGHTS[1])}
    return files


def base_folder(spec: ModelSection) -> Path | None:
    """Where a pretrained model lies: its own folder, or that of its revision in the cache; None if it is in neither."""
    if Path(spec.model_name).is_dir():
        return Path(spec.model_name)
    try:
        cached = try_to_load_from_cache(spec.model_name, "config.json", revision=spec.revision)
    except ValueError:
        # The name cannot be one of the hub.
        return None
    return Path(cached).parent if isinstance(cached, str) else None
