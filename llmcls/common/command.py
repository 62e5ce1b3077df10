"""What every command shares: its parser, and how it ends after an error or an interrupt."""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, TracebackType

from llmcls.common.files import read_json, write_json
from llmcls.common.secrets import redacted
from llmcls.common.signals import interrupted_code
from llmcls.common.system_errors import explain_system_error
from llmcls.common.user_error import UserError

INTERRUPTED = "interrupted; run the same command again to resume"


def command_parser(name: str, description: str) -> argparse.ArgumentParser:
    """The parser of the command ``llmcls NAME``, which is also ``python -m llmcls.NAME``."""
    return argparse.ArgumentParser(prog=f"llmcls {name}", description=description)


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments ``RECIPE [section.key=value ...]``."""
    parser.add_argument("recipe", help="a recipe YAML file")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help="values that replace those of the recipe"
    )


def run_command(main: Callable[[], None]) -> None:
    """Run a command; a `UserError` becomes one sentence on stderr and exit code 2.

    Any other exception keeps its traceback, because it is a bug and the traceback belongs in the bug report. No message
    shows a secret.
    """
    expect_interrupts()
    _end_imports()
    try:
        try:
            main()
        except OSError as error:
            explained = explain_system_error(error)
            if explained is None:
                raise
            raise explained from error
    except UserError as error:
        if os.environ.get("RANK", "0") != "0":
            # All ranks find the same error. Rank 0 reports it first, and the launcher then ends the other ranks
            # during this pause. An error that only this rank found is reported after the pause.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(3)
        sentence = redacted(f"error: {error}")
        # On a busy machine the launcher may take longer than the pause.
        said = _said_by_another_rank(sentence)
        _tell_launcher(sentence)
        if not said:
            print(sentence, file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr, flush=True)
        sys.exit(interrupted_code())


def _tell_launcher(sentence: str) -> None:
    """Let the launcher of torch repeat a sentence at the end of what it prints about a process that failed.

    Notes
    -----
    torchelastic reads the message and the time from this file, and shows the process that failed first last.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        content = {"message": {"message": sentence, "extraInfo": {"timestamp": str(int(time.time()))}}}
        with contextlib.suppress(OSError):
            write_json(Path(path), content)


def _said_by_another_rank(sentence: str) -> bool:
    """Whether another rank on this machine has told its launcher the same; each has a folder beside those of others."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    for other in Path(path).parent.parent.glob("*/error.json") if path else []:
        # A file that cannot be read says nothing.
        with contextlib.suppress(OSError, UserError, KeyError, TypeError):
            if other != Path(path or "") and read_json(other)["message"]["message"] == sentence:
                return True
    return False


def expect_interrupts() -> None:
    """Let Ctrl-C end with a line instead of a traceback."""
    sys.excepthook = _print_redacted


def begin_imports() -> None:
    """What a command does before it imports libraries for seconds; `run_command` ends it.

    Ctrl-C ends the command with a line. And nothing is searched for garbage: of the million objects that imports
    create, almost all stay, and searching them again and again takes a tenth of the time.
    """
    expect_interrupts()
    gc.disable()


def import_command(name: str) -> ModuleType:
    """Import the module of a command, whose imports may take seconds, in a command that has begun."""
    begin_imports()
    try:
        return importlib.import_module(name)
    finally:
        _end_imports()


def _end_imports() -> None:
    """Search for garbage again, but never in what was imported."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def _print_redacted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback as Python does, without secrets; for an interrupt, only a line."""
    if isinstance(error, KeyboardInterrupt):
        print(INTERRUPTED, file=sys.stderr, flush=True)
        return
    print(redacted("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr, flush=True)
