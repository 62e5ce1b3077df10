"""Atomic writes: an interrupted process, or a power cut, leaves the old file or the new one, never part of one."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmcls.common.system_errors import disk_full
from llmcls.common.user_error import UserError

# What `replacing` puts behind a name, with the number of its process.
_PARTIAL = re.compile(r"\.\d+\.partial$")
# Bytes below which a disk counts as full.
_LITTLE = 1 << 20


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; rename it to ``path`` on success, remove it on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    # Never write through what lies there, such as a link.
    temporary.unlink(missing_ok=True)
    try:
        with explained_if_full(path):
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def explained_if_full(path: Path) -> Iterator[None]:
    """Let a full disk end in a sentence that names a file. Some libraries report it in exceptions of their own."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        sentence = disk_full(error, path)
        # torch does not say why it could not write.
        if sentence is None and isinstance(error, RuntimeError) and shutil.disk_usage(path.parent).free < _LITTLE:
            sentence = disk_full(OSError(errno.ENOSPC, ""), path)
        if sentence is None:
            raise
        raise sentence from error


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk: a name can arrive there before its content."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0) if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot do this for a folder.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with ``\\n`` line ends on every system."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def json_text(value: Any) -> str:
    """Indented JSON.

    Raises
    ------
    ValueError
        If a number is NaN or infinite, which other programs cannot read.
    """
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write `json_text`."""
    write_text(path, json_text(value))


def read_json(path: Path) -> Any:
    """The value that `write_json` wrote.

    Raises
    ------
    UserError
        If the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise UserError(f"{path} is damaged: it is not JSON; restore it, or run again what wrote it") from None


@contextmanager
def replacing_folder(path: Path, previous: Path | None = None) -> Iterator[Path]:
    """Like `replacing`, for a folder: filled under a temporary name, then swapped in, or removed on failure.

    Not every system can rename a folder over another. During the swap, the old folder is at ``<name>.old``;
    `current_folder` finds it if the swap was interrupted.

    Parameters
    ----------
    path : Path
    previous : Path, optional
        Where the old folder stays. What was there is removed first, so that the disk holds two of them at most.
    """
    temporary, old = path.with_name(f"{path.name}.partial"), path.with_name(f"{path.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    if previous is not None and path.exists():
        shutil.rmtree(previous, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with explained_if_full(path):
            yield temporary
            for inside in [*temporary.rglob("*"), temporary]:
                sync(inside)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, previous or old)
    os.replace(temporary, path)
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_partials(folder: Path, start: str = "", folders: bool = False) -> None:
    """Remove what killed processes left of `replacing` and `replacing_folder` in a folder.

    Only for a process that alone may write there.

    Parameters
    ----------
    folder : Path
    start : str
        The beginning of the names that the process may write.
    folders : bool
        Whether to remove folders, too: where all names are those of llmcls.
    """
    for path in folder.glob("*.partial"):
        if not path.name.startswith(start):
            continue
        if folders and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif _PARTIAL.search(path.name) and not path.is_dir():
            path.unlink(missing_ok=True)


def current_folder(path: Path) -> Path | None:
    """The newest complete version of a folder written by `replacing_folder`, or None."""
    old = path.with_name(f"{path.name}.old")
    return path if path.exists() else old if old.exists() else None
