from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmcls.common.command import add_recipe_arguments, begin_imports, command_parser, import_command, run_command
from llmcls.common.user_error import UserError
from tests.helpers import ROOT, run_module


def failing(error: BaseException):
    def main() -> None:
        raise error

    return main


def test_usage_and_help_name_the_console_command(capsys) -> None:
    parser = command_parser("compare", "Compare two runs.")
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: llmcls compare ")
    assert "Compare two runs." in text


def test_a_recipe_is_followed_by_any_number_of_overrides() -> None:
    parser = command_parser("train", "")
    add_recipe_arguments(parser)
    arguments = parser.parse_args(["r.yaml", "train.batch_size=4", "exp.seeds=[1, 2]"])
    assert arguments.recipe == "r.yaml"
    assert arguments.overrides == ["train.batch_size=4", "exp.seeds=[1, 2]"]
    assert parser.parse_args(["r.yaml"]).overrides == []


def test_without_arguments_only_the_recipe_is_said_to_be_missing(capsys) -> None:
    parser = command_parser("check", "")
    add_recipe_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_intermixed_args([])
    assert "the following arguments are required: recipe\n" in capsys.readouterr().err


def test_a_command_that_succeeds_returns() -> None:
    run_command(lambda: None)


def test_no_garbage_is_looked_for_while_a_command_imports_its_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmcls.common import command

    began = []
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(command.importlib, "import_module", lambda name: began.append((name, gc.isenabled())) or sys)
    assert import_command("llmcls.runs") is sys
    assert began == [("llmcls.runs", False)]
    assert gc.isenabled()
    begin_imports()
    assert not gc.isenabled()
    run_command(lambda: began.append(("main", gc.isenabled())))
    assert began[1:] == [("main", True)]


def test_a_user_error_is_one_sentence_and_exit_code_2(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        run_command(failing(UserError("a.csv, row 3: not a number")))
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.err == "error: a.csv, row 3: not a number\n"
    assert captured.out == ""


def test_a_launcher_of_torch_can_repeat_the_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SystemExit):
        run_command(failing(UserError("a.csv, row 3: not a number")))
    # The last lines that the launcher prints.
    lines = ChildFailedError("llmcls.train", {0: ProcessFailure(0, 1, 2, str(path))}).format_msg().splitlines()
    assert lines[-2].strip() == "traceback : error: a.csv, row 3: not a number"


def test_a_sentence_of_several_ranks_is_printed_once_however_slow_the_launcher_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    for rank, message in (("0", "the same"), ("1", "the same"), ("2", "its own")):
        (tmp_path / rank).mkdir()
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / rank / "error.json"))
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit):
            run_command(failing(UserError(message)))
    assert capsys.readouterr().err == "error: the same\nerror: its own\n"


def test_what_the_system_refuses_is_one_sentence(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        run_command(failing(PermissionError(errno.EACCES, "Permission denied", "outputs/a")))
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: outputs/a: may not be used by this user; ")


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(failing(ZeroDivisionError("a bug")))


def test_an_interrupt_says_how_to_resume(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        run_command(failing(KeyboardInterrupt()))
    assert stop.value.code == 130
    assert "run the same command again" in capsys.readouterr().err


def test_other_ranks_let_rank_0_report_first(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    for rank, expected in (("0", []), ("1", [3])):
        waits.clear()
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit):
            run_command(failing(UserError("the same error on all ranks")))
        assert waits == expected


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_rank_that_watches_for_signals_is_ended_before_it_reports_the_same_error() -> None:
    code = (
        "import os, signal, threading\n"
        "from llmcls.common.command import run_command\n"
        "from llmcls.common.signals import watch_signals\n"
        "from llmcls.common.user_error import UserError\n"
        "def main():\n"
        "    watch_signals()\n"
        "    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "    raise UserError('the same error on all ranks')\n"
        "run_command(main)\n"
    )
    environment = os.environ | {"RANK": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGTERM, "")


@pytest.mark.slow
@pytest.mark.parametrize("module", ["llmcls.train", "llmcls.check"])
def test_a_real_process_exits_with_2_and_no_traceback(write_recipe, module: str) -> None:
    done = run_module(module, write_recipe(data__text_fields=["titel"]))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "did you mean 'title'?" in done.stderr
