"""Run each check in another process, which is replaced if it crashes, hangs, or may have spoilt the state of a GPU.

After an illegal memory access every call to the GPU fails, so one broken kernel would make all later checks fail in the
same process. A check that hangs, as an exchange between GPUs can, is ended.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from llmcls.diagnosis.checks import Check, run_check
from llmcls.diagnosis.findings import Finding, Subject, fault

# Where the output of the checks goes, in the folder of the subject.
OUTPUT = "output.txt"
# Set in the process of the checks, unless they are set: a cache that is removed afterwards, and a quiet profiler.
ENVIRONMENT = {"KINETO_LOG_LEVEL": "99", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def run_isolated(checks: Sequence[Check], subject: Subject) -> Iterator[tuple[Check, Finding, float]]:
    """Run checks one after the other.

    Parameters
    ----------
    checks : sequence of Check
    subject : Subject

    Yields
    ------
    The check, what it found, and the seconds it took.
    """
    worker: _Worker | None = None
    try:
        for check in checks:
            worker = worker or _Worker(subject)
            start = time.perf_counter()
            finding, usable = worker.run(check)
            if not usable:
                worker.stop(patience=0)
                worker = None
            yield check, finding, time.perf_counter() - start
    finally:
        if worker is not None:
            worker.stop()


class _Worker:
    """A process that runs checks.

    Parameters
    ----------
    subject : Subject
    """

    def __init__(self, subject: Subject) -> None:
        # Not forked: a GPU cannot be used in a fork, and the threads of a library would be missing.
        context = multiprocessing.get_context("spawn")
        self._output = subject.folder / OUTPUT
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, subject))
        self._process.start()
        other.close()

    def run(self, check: Check) -> tuple[Finding, bool]:
        """What a check found, and whether this process can run another one."""
        try:
            self._connection.send(check)
            if self._connection.poll(check.seconds):
                finding, raised = self._connection.recv()
                return finding, not raised
        except (EOFError, OSError):
            self._process.join(5)
            code = self._process.exitcode
            ended = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
            return fault(f"the check ended its process with {ended}{self._last_words()}", _ADVICE_CRASH), False
        return fault(f"it did not end within {check.seconds} s{self._last_words()}", _ADVICE_HANG), False

    def stop(self, patience: float = 5) -> None:
        """End the process, at first by closing its connection and waiting some seconds."""
        self._connection.close()
        self._process.join(patience)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _last_words(self) -> str:
        """The last line that the process wrote, after a colon."""
        if not self._output.is_file():
            return ""
        lines = self._output.read_text(encoding="utf-8", errors="replace").splitlines()
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f": {last[:160]}" if last else ""


_ADVICE_CRASH = (
    "the library or the driver that it uses is broken or does not fit; install it again, or update the driver"
)
_ADVICE_HANG = "run it again alone with --only; if it hangs again, report it with doctor.json"


def _serve(connection: Connection, subject: Subject) -> None:
    """Run the checks that arrive, until the connection is closed."""
    _be_quiet(subject)
    while True:
        try:
            check = connection.recv()
        except EOFError:
            return
        connection.send(run_check(check, subject))
        _free_memory()


def _be_quiet(subject: Subject) -> None:
    """Send the output of this process, also that of native code, to a file, and hide warnings of libraries."""
    for name, value in (ENVIRONMENT | {"HF_DATASETS_CACHE": str(subject.folder / "cache")}).items():
        os.environ.setdefault(name, value)
    output = os.open(subject.folder / OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")


def _free_memory() -> None:
    """Give back what a check has left."""
    gc.collect()
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
