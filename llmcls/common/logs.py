"""Log set-up: one plain line per message on stderr, and quiet libraries."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging

from llmcls.common.secrets import redacted

HANDLER = "llmcls.stderr"


class RedactingFormatter(logging.Formatter):
    """Formats log lines without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        return redacted(super().format(record))


def configure_logging(main_process: bool) -> None:
    """Log to stderr: everything on the main process, errors on the others."""
    root = logging.getLogger("llmcls")
    root.setLevel(logging.INFO if main_process else logging.ERROR)
    root.propagate = False
    # By name: another library's handler on the same logger (a notebook's, a test runner's) does not write to stderr.
    if all(handler.name != HANDLER for handler in root.handlers):
        handler = logging.StreamHandler(sys.stderr)
        handler.name = HANDLER
        handler.setFormatter(RedactingFormatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
        root.addHandler(handler)
    _quiet_libraries()


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """The warnings that llmcls logs inside the block, as they come, in a list."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(redacted(record.getMessage()))

    root, handler = logging.getLogger("llmcls"), Collector(logging.WARNING)
    root.addHandler(handler)
    try:
        yield messages
    finally:
        root.removeHandler(handler)


def _quiet_libraries() -> None:
    """Silence warnings about things that are handled here: new heads, missing kernels, renamed internals."""
    transformers_logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|accelerate|torch)\.")
