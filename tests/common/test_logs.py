from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest

from llmcls.common.logs import configure_logging


@pytest.fixture(autouse=True)
def _restored_logger() -> Iterator[None]:
    root = logging.getLogger("llmcls")
    before = root.handlers[:], root.level, root.propagate
    root.handlers = []
    yield
    root.propagate = before[2]
    root.setLevel(before[1])
    root.handlers = before[0]


def test_the_main_process_logs_one_plain_line_per_message(capsys) -> None:
    configure_logging(main_process=True)
    logging.getLogger("llmcls.training.loop").info("step %d", 3)
    captured = capsys.readouterr()
    assert re.fullmatch(r"\d\d:\d\d:\d\d step 3\n", captured.err)
    assert captured.out == ""


def test_other_processes_log_errors_only(capsys) -> None:
    configure_logging(main_process=False)
    log = logging.getLogger("llmcls.training.loop")
    log.info("step 3")
    log.warning("a warning")
    log.error("an error")
    assert [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()] == ["an error"]


def test_configuring_twice_does_not_log_twice(capsys) -> None:
    configure_logging(main_process=True)
    configure_logging(main_process=True)
    logging.getLogger("llmcls").info("once")
    assert capsys.readouterr().err.count("once") == 1


def test_another_handler_on_the_logger_does_not_silence_stderr(capsys) -> None:
    logging.getLogger("llmcls").addHandler(logging.NullHandler())
    configure_logging(main_process=True)
    logging.getLogger("llmcls").info("heard")
    assert capsys.readouterr().err.count("heard") == 1


def test_the_libraries_are_quiet() -> None:
    from transformers.utils import logging as transformers_logging

    configure_logging(main_process=True)
    assert transformers_logging.get_verbosity() == logging.ERROR
