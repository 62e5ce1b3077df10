"""Checks that go wrong in every way, for the tests of the doctor. They import no heavy library."""

from __future__ import annotations

import os
import signal
import sys
import time

from llmcls.common.user_error import UserError
from llmcls.diagnosis.findings import Finding, NotApplicable, Subject, ok


def fine(subject: Subject) -> Finding:
    """Finds the process that it runs in."""
    print("this goes to a file")
    return ok("fine", process=os.getpid())


def raises(subject: Subject) -> Finding:
    """Raises what a library would."""
    raise RuntimeError("\nCUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA")


def refuses(subject: Subject) -> Finding:
    """Raises a sentence with advice."""
    raise UserError("data.csv, row 3: the class is empty; fill it in or drop the row")


def does_not_apply(subject: Subject) -> Finding:
    """Is skipped."""
    raise NotApplicable("no recipe was given")


def crashes(subject: Subject) -> Finding:
    """Dies as native code does."""
    print("native: cannot open libcudart.so", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def hangs(subject: Subject) -> Finding:
    """Never ends."""
    while True:
        time.sleep(1)
