from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from llmcls.common import secrets
from llmcls.common.command import run_command
from llmcls.common.logs import configure_logging
from llmcls.common.secrets import keep_secret, redacted
from llmcls.common.user_error import UserError
from tests.helpers import ROOT


@pytest.fixture(autouse=True)
def _forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_known", set())
    secrets._stored_token.cache_clear()


def test_a_kept_secret_is_replaced_wherever_it_occurs() -> None:
    keep_secret("hf_abcdef")
    assert redacted("Bearer hf_abcdef, again hf_abcdef") == "Bearer ***, again ***"
    # A word that short is no token, and occurs everywhere.
    keep_secret("a")
    assert redacted("banana") == "banana"


def test_tokens_of_the_environment_and_of_the_hub_cache_are_secrets(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "token").write_text("hf_in_the_cache\n")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", "hf_in_the_environment")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    assert redacted("hf_in_the_environment 0123456789abcdef hf_in_the_cache") == "*** *** ***"


def test_no_message_and_no_log_line_contains_a_secret(monkeypatch, capsys) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_in_the_environment")
    # A handler of an earlier test writes to the stderr of that test.
    monkeypatch.setattr(logging.getLogger("llmcls"), "handlers", [])

    def refused() -> None:
        configure_logging(main_process=True)
        logging.getLogger("llmcls").info("token %s", "hf_in_the_environment")
        raise UserError("illegal header 'Bearer hf_in_the_environment'")

    with pytest.raises(SystemExit):
        run_command(refused)
    found = capsys.readouterr().err
    assert "illegal header 'Bearer ***'" in found
    assert "token ***" in found
    assert "hf_in_the_environment" not in found


CODE = """
import pathlib, sys
from llmcls.common.command import run_command
from llmcls.common.secrets import keep_secret
def main():
    keep_secret(sys.argv[1].partition("=")[2])
    print(sys.argv, sys.orig_argv)
    if sys.platform == "linux":
        print(pathlib.Path("/proc/self/cmdline").read_bytes())
    raise ValueError("Bearer hf_on_the_command_line")
run_command(main)
"""


def test_a_secret_on_the_command_line_is_in_no_process_list_and_no_traceback() -> None:
    command = [sys.executable, "-c", CODE, "model.hf_token=hf_on_the_command_line", "other=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ValueError: Bearer ***" in done.stderr
    assert "other=1" in done.stdout
    assert "hf_on_the_command_line" not in done.stdout + done.stderr
