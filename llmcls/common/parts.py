"""The parts of a command that are processes of their own: a signal ends them as it would end them alone."""

from __future__ import annotations

import subprocess
import sys

from llmcls.common.signals import EXIT_BY_KEYBOARD, EXIT_INTERRUPTED
from llmcls.common.user_error import UserError


def run_part(command: list[str], what: str) -> None:
    """Run a part in a process of its own; a signal that stops this command stops it too, and it saves.

    `subprocess.run` would kill it a quarter of a second after a Ctrl-C. The command has called `watch_signals`.

    Parameters
    ----------
    command : list of str
    what : str
        For the error message, such as "the training".

    Raises
    ------
    UserError
        If the part fails; its own error is above.
    KeyboardInterrupt
        If a signal stopped this command.
    """
    process = subprocess.Popen(command)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        # The part knows of a Ctrl-C in the terminal, but not of a signal that only this process received.
        process.terminate()
        process.wait()
        raise
    if code in (EXIT_INTERRUPTED, EXIT_BY_KEYBOARD):
        sys.exit(code)
    if code != 0:
        raise UserError(f"{what} ended with exit code {code}, see above; run again to resume")
