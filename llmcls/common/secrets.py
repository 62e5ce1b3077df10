"""Secrets: tokens that no message, log, process list or tracker may show, whichever way they came in."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path

ENVIRONMENT = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")
HIDDEN = "***"
# Shorter texts are no tokens, and occur in other words.
SHORTEST = 6

_known: set[str] = set()


def keep_secret(text: str) -> None:
    """Hide a text from now on: in messages, and in the arguments that this process shows to others."""
    if len(text) < SHORTEST:
        return
    _known.add(text)
    for arguments in (sys.argv, sys.orig_argv):
        arguments[:] = [argument.replace(text, HIDDEN) for argument in arguments]
    if sys.platform == "linux":
        _hide_in_process_list(text.encode())


def token_to_environment(overrides: list[str]) -> list[str]:
    """Move a token of the hub from a command line, which others can see, to the environment of the processes.

    Returns
    -------
    list of str
        The overrides, with a token of the recipe taken out, because the environment now has another one.
    """
    kept = []
    for override in overrides:
        key, equals, value = override.partition("=")
        token = value.strip().strip("'\"")
        if equals and key.strip() in ("hf_token", "model.hf_token") and token not in ("", "null", "~"):
            keep_secret(token)
            os.environ["HF_TOKEN"] = token
            override = "model.hf_token=null"
        kept.append(override)
    return kept


def redacted(text: str) -> str:
    """A text with ``***`` in place of every secret.

    Parameters
    ----------
    text : str

    Returns
    -------
    str
    """
    found = {os.environ.get(name, "") for name in ENVIRONMENT} | {_stored_token()} | _known
    # The longest first, because one secret can be part of another.
    for secret in sorted((s.strip() for s in found), key=len, reverse=True):
        if len(secret) >= SHORTEST:
            text = text.replace(secret, HIDDEN)
    return text


@functools.cache
def _stored_token() -> str:
    """The token that `hf auth login` stored; empty if there is none."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    try:
        return Path(os.environ.get("HF_TOKEN_PATH") or home / "token").expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError, RuntimeError):
        return ""


def _hide_in_process_list(secret: bytes) -> None:
    """Overwrite a secret where Linux keeps the command line of this process, which `ps` shows to everybody."""
    # Fields 48 and 49 of proc_pid_stat(5), counted from the third, which follows the name in parentheses.
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    line = ctypes.string_at(start, end - start) if start else b""
    place = line.find(secret)
    while place >= 0:
        ctypes.memset(start + place, ord("*"), len(secret))
        place = line.find(secret, place + 1)
