"""Writing files so that an interrupted run leaves the old file or the new one, never half of one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``, renamed to it when the block ends well and removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with plain line ends on every system."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON; NaN is refused, because no other program reads it."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Like `replacing`, for a folder: filled under a temporary name, then swapped in.

    A folder cannot be renamed over another on every system, so for a moment the old one lies beside as
    ``<name>.old``; `current_folder` finds it if the swap was cut short.
    """
    temporary, old = path.with_name(f"{path.name}.partial"), path.with_name(f"{path.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
    os.replace(temporary, path)
    shutil.rmtree(old, ignore_errors=True)


def current_folder(path: Path) -> Path | None:
    """The newest complete version of a folder written by `replacing_folder`, or None."""
    old = path.with_name(f"{path.name}.old")
    return path if path.exists() else old if old.exists() else None
