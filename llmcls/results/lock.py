"""A lock on a folder or a file, so that two processes do not write to it at once, on one machine or on several.

The lock is a file that names its owner. On the machine of the owner, its process says whether it is alive. Elsewhere,
the time of the file does, which the owner renews; ages are measured with the clock of the file system, because those of
two machines may differ.
"""

from __future__ import annotations

import contextlib
import glob
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from llmcls.common.user_error import UserError

log = logging.getLogger(__name__)

SECONDS_BETWEEN_SIGNS = 10.0
# A network file system may show the time of a file a minute late.
SECONDS_UNTIL_DEAD = 120.0
# The removal of a dead owner's lock takes milliseconds; a process that takes longer was killed meanwhile.
SECONDS_OF_A_REMOVAL = 15.0


class InUseError(UserError):
    """Another process, which is alive, holds a lock."""


@dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    Attributes
    ----------
    host : str
        For people.
    machine : str
        Machine, its start, and the space in which process numbers are unique.
    process : int
    started : float
        When the process started, in seconds; a later one can have the same number.
    since : str
        When it took the lock.
    token : str
        Unique for each lock.
    """

    host: str
    machine: str
    process: int
    started: float
    since: str
    token: str


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock. The lock of an owner that is dead is taken over.

    Parameters
    ----------
    path : Path
        The file of the lock.
    what : str
        What it protects, for the error message.

    Raises
    ------
    InUseError
        If another process, which is alive, holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = Owner(
        host=socket.gethostname(),
        machine=_machine(),
        process=os.getpid(),
        started=psutil.Process().create_time(),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        token=uuid.uuid4().hex,
    )
    while not _create(path, own):
        _wait_for_the_end_of(path, what)
    _remove_left_over(path)
    done = threading.Event()
    signs = threading.Thread(target=_give_signs, args=(path, own, done), daemon=True, name="llmcls lock")
    signs.start()
    try:
        yield
    finally:
        done.set()
        signs.join()
        if _read(path) == own:
            path.unlink(missing_ok=True)


def in_use(path: Path) -> bool:
    """Whether a process that is alive holds a lock; takes and writes nothing."""
    owner, changed = _read(path), _time_of(path)
    if owner is None or changed is None:
        return False
    return _runs(owner) if owner.machine == _machine() else time.time() - changed <= SECONDS_UNTIL_DEAD


def _create(path: Path, own: Owner) -> bool:
    """Make the lock; False if there is one. It appears with its content, or not at all."""
    mine = path.with_name(f"{path.name}.{own.token}")
    mine.write_text(json.dumps(asdict(own)), encoding="utf-8")
    try:
        os.link(mine, path)
    except FileExistsError:
        return False
    except OSError:
        # No hard links on this file system: the lock appears first, and its content a moment later.
        try:
            with path.open("x", encoding="utf-8") as file:
                json.dump(asdict(own), file)
        except FileExistsError:
            return False
    finally:
        mine.unlink()
    return True


def _remove_left_over(path: Path) -> None:
    """Remove what processes left that were killed in `_create`."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.{'[0-9a-f]' * 32}"):
        owner, since = _read(left), _time_of(left)
        dead = owner is not None and owner.machine == _machine() and not _runs(owner)
        if dead or (since is not None and _now(path) - since > SECONDS_UNTIL_DEAD):
            left.unlink(missing_ok=True)


def _read(path: Path) -> Owner | None:
    """The owner of a lock; None if there is no lock, or if it is damaged."""
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _wait_for_the_end_of(path: Path, what: str) -> None:
    """Return if the lock is gone or its owner is dead; wait for a sign of life from another machine.

    Raises
    ------
    InUseError
        If the owner is alive.
    """
    owner = _read(path)
    first = _time_of(path)
    if owner is not None and owner.machine == _machine():
        alive = _runs(owner)
    else:
        log.info(
            "%s may be in use on another machine; waiting up to %.0f s for a sign of life", what, SECONDS_UNTIL_DEAD
        )
        alive = False
        while first is not None and _now(path) - first <= SECONDS_UNTIL_DEAD:
            time.sleep(SECONDS_BETWEEN_SIGNS / 4)
            if _time_of(path) not in (first, None):
                alive = True
                break
            if _time_of(path) is None:
                return
    if alive:
        who = f"process {owner.process} on {owner.host} since {owner.since}" if owner else "another process"
        raise InUseError(f"{what} is in use by {who}; wait until it ends, or end it")
    _remove(path, owner)


def _remove(path: Path, owner: Owner | None) -> None:
    """Remove the lock of a dead owner, unless another process was faster and holds its own by now."""
    turn = path.with_name(f"{path.name}.turn")
    try:
        turn.mkdir()
    except FileExistsError:
        # Another process removes it. If that was killed meanwhile, its turn ends.
        if _now(path) - (_time_of(turn) or 0.0) > SECONDS_OF_A_REMOVAL:
            with contextlib.suppress(OSError):
                turn.rmdir()
        time.sleep(0.1)
        return
    try:
        if _read(path) == owner:
            path.unlink(missing_ok=True)
    finally:
        turn.rmdir()


def _give_signs(path: Path, own: Owner, done: threading.Event) -> None:
    """Renew the time of the lock until ``done``; end the process if another one took the lock over."""
    while not done.wait(SECONDS_BETWEEN_SIGNS):
        if _read(path) not in (own, None):
            log.error("%s was taken over by another process while this one was stopped; ending this one", path)
            os._exit(1)
        with contextlib.suppress(OSError):
            os.utime(path)


def _runs(owner: Owner) -> bool:
    """Whether the process of this machine that holds a lock is alive."""
    try:
        process = psutil.Process(owner.process)
        same = abs(process.create_time() - owner.started) < 1.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _machine() -> str:
    """This machine, since it started, and the space in which its process numbers are unique."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return f"{socket.gethostname()} {uuid.getnode():x} {_boot()} {space}"


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        # The clock may be corrected later, by less than this.
        return str(round(psutil.boot_time() / 600))


def _time_of(path: Path) -> float | None:
    """When a file was changed last, in seconds; None if it is gone."""
    try:
        # Opening makes a network file system ask its server.
        if path.is_file():
            with path.open("rb") as file:
                return os.fstat(file.fileno()).st_mtime
        return path.stat().st_mtime
    except OSError:
        return None


def _now(path: Path) -> float:
    """The time of the file system that holds a lock, in seconds."""
    probe = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()
