"""Names of folders: what may become one part of a path, so that no name leaves the folder that it is put into."""

from __future__ import annotations

import os

# In bytes. File systems allow 255; temporary names beside a file or folder need the rest.
LONGEST = 200

# Windows reads a name with a colon as another drive or a stream of a file, and gives some names to devices.
_WINDOWS_CHARACTERS = '<>:"|?*'
_WINDOWS_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))}


def folder_name_problem(name: str, windows: bool = os.name == "nt") -> str | None:
    """Why a text cannot be the name of a folder; None if it can.

    Parameters
    ----------
    name : str
    windows : bool
        Whether the rules of Windows hold too.

    Returns
    -------
    str, optional
        The end of a sentence that begins with the name.

    Examples
    --------
    >>> folder_name_problem("../x"), folder_name_problem("amazon_13k")
    ('has a path separator', None)
    """
    if not name:
        return "is empty"
    if "/" in name or "\\" in name:
        return "has a path separator"
    if not name.replace(" ", "x").isprintable():
        return "has a character that cannot be printed"
    # Windows drops dots and spaces at the end, so that ".. " would be the folder above.
    if name in (".", "..") or name[-1] in ". ":
        return "is not the name of a folder"
    if len(name.encode()) > LONGEST:
        return f"has more than {LONGEST} bytes"
    if windows and (set(name) & set(_WINDOWS_CHARACTERS) or name.partition(".")[0].strip().lower() in _WINDOWS_DEVICES):
        return "is a name that Windows does not allow"
    return None
