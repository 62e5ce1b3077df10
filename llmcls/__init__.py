"""llmcls: fine-tune language models for text classification, from a laptop to a cluster."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

__version__ = "0.1.0"


class UserMistake(Exception):
    """Something the user can put right: the message says what is wrong, where, and what to do."""


def run_command(main: Callable[[], None]) -> None:
    """Run a command's ``main``; a `UserMistake` becomes one sentence on stderr and exit code 2.

    Any other exception keeps its traceback: it is our mistake, and the traceback is what a bug
    report needs.
    """
    try:
        main()
    except UserMistake as mistake:
        if os.environ.get("RANK", "0") != "0":
            # All processes find the same mistake: the first one says it, and the launcher then ends the others
            # here. A mistake that only this process found is said a moment later.
            time.sleep(3)
        print(f"error: {mistake}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr, flush=True)
        sys.exit(130)
