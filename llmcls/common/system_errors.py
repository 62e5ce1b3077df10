"""What the operating system refuses, in the words of a user."""

from __future__ import annotations

import errno
from pathlib import Path

from llmcls.common.user_error import UserError

_FULL = "free some space; the same command then resumes from what is saved"
_DENIED = "may not be used by this user; choose another folder, or change its permissions"
_IN_THE_WAY = "a file is where a folder should be, or the reverse; move it away"
_EXPLAINED = {
    errno.ENOSPC: f"the disk is full; {_FULL}",
    getattr(errno, "EDQUOT", errno.ENOSPC): f"your quota is used up; {_FULL}",
    errno.EFBIG: "the file would be larger than the system allows; write to another file system",
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EROFS: "is on a file system that can only be read; choose another folder",
    errno.ENAMETOOLONG: "the path is longer than the system allows; choose shorter names",
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EISDIR: _IN_THE_WAY,
    errno.EEXIST: _IN_THE_WAY,
    errno.EMFILE: "this process has too many open files; raise `ulimit -n`",
    errno.EIO: "the disk reported an error; check the disk or the network file system",
    getattr(errno, "ESTALE", errno.EIO): "the network file system lost the file; run the same command again",
}


def explain_system_error(error: OSError) -> UserError | None:
    """An error of the operating system as a sentence; None if only a programmer can say what it means.

    Parameters
    ----------
    error : OSError

    Returns
    -------
    UserError, optional
    """
    explained = _EXPLAINED.get(error.errno or 0)
    if explained is None:
        return None
    return UserError(f"{error.filename}: {explained}" if error.filename else explained)


def disk_full(error: BaseException, path: Path) -> UserError | None:
    """A full disk or quota as a sentence that names the file; None for another error.

    Libraries that are not written in Python pass on the words of the system, without its number.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None:
        words = str(error)
        named = {"No space left on device": errno.ENOSPC, "Disk quota exceeded": getattr(errno, "EDQUOT", errno.ENOSPC)}
        number = next((code for text, code in named.items() if text in words), None)
    if number not in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return None
    return explain_system_error(OSError(number, "", str(path)))
