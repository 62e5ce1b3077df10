"""Manifests: the size and a checksum of files, so that damage is found before it is used.

The checksum is XXH3, which takes less time than reading. It finds accidents; nothing in a folder proves who wrote it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xxhash

from llmcls.common.files import read_json, write_json
from llmcls.common.user_error import UserError

MANIFEST = "manifest.json"
CHECKSUM = "xxh3_128"
_BLOCK = 1 << 22

Entry = dict[str, Any]


def entry_of(file: Path) -> Entry:
    """The size in bytes and the checksum of a file."""
    state, size = xxhash.xxh3_128(), 0
    with file.open("rb") as content:
        while block := content.read(_BLOCK):
            state.update(block)
            size += len(block)
    return {"bytes": size, CHECKSUM: state.hexdigest()}


def entry_of_content(content: bytes) -> Entry:
    """The entry of a file that will be written with this content."""
    return {"bytes": len(content), CHECKSUM: xxhash.xxh3_128(content).hexdigest()}


def write_manifest(folder: Path, files: Iterable[Path], planned: dict[str, bytes] | None = None) -> None:
    """Write the manifest of a folder.

    Parameters
    ----------
    folder : Path
    files : iterable of Path
        Inside it.
    planned : dict, optional
        The content of files that will be written next, by name.
    """
    entries = {file.relative_to(folder).as_posix(): entry_of(file) for file in sorted(files)}
    entries |= {name: entry_of_content(content) for name, content in (planned or {}).items()}
    write_json(folder / MANIFEST, {"files": entries})


def read_manifest(folder: Path) -> dict[str, Entry] | None:
    """The entries of a manifest by name; None if there is no manifest.

    Raises
    ------
    UserError
        If the manifest itself is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    saved = read_json(path)
    entries = saved.get("files") if isinstance(saved, dict) else None
    if not isinstance(entries, dict) or not all(isinstance(e, dict) and CHECKSUM in e for e in entries.values()):
        raise UserError(f"{path} is damaged: it lists no files")
    return entries


def damage(folder: Path, names: Iterable[str] | None = None) -> str | None:
    """What is wrong with files of a folder, according to its manifest.

    Parameters
    ----------
    folder : Path
    names : iterable of str, optional
        The files that matter, relative to the folder; by default all that the manifest lists.

    Returns
    -------
    str, optional
        The first file that differs and how, as the end of a sentence; None if all are as they were written.
    """
    try:
        entries = read_manifest(folder)
    except UserError as error:
        return str(error)
    if entries is None:
        return f"{MANIFEST} is missing"
    for name in sorted(entries) if names is None else names:
        known, file = entries.get(name), folder / name
        if known is None:
            if file.exists():
                return f"{name} is not in {MANIFEST}"
            continue
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != known.get("bytes"):
            return f"{name} has {file.stat().st_size} bytes instead of {known.get('bytes')}"
        if entry_of(file) != known:
            return f"{name} has another content than was written"
    return None
