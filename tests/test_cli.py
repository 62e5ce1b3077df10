from __future__ import annotations

import importlib

import pytest
from typer.testing import CliRunner

from llmcls.cli import COMMANDS, app
from llmcls.folder import main as folder
from tests.helpers import ROOT


def test_every_command_of_the_package_is_listed() -> None:
    modules = {path.stem for path in (ROOT / "llmcls").glob("*.py")} - {"__init__", "__main__", "cli"}
    assert set(COMMANDS) == modules


def test_help_lists_the_commands_in_groups_with_their_descriptions() -> None:
    done = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert done.exit_code == 0
    for name, (group, description) in COMMANDS.items():
        assert f" {name} " in done.output
        assert group in done.output
        assert description in done.output
    assert "accelerate launch --config_file" in done.output


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_is_that_of_its_module(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(f"llmcls.{name}").main(["--help"])
    assert stop.value.code == 0
    expected = capsys.readouterr().out
    assert expected.startswith(f"usage: llmcls {name} ")
    done = CliRunner().invoke(app, [name, "--help"])
    assert done.exit_code == 0
    assert done.output == expected


def test_arguments_reach_the_command(write_recipe, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(write_recipe()), "exp.run_name=named"]
    folder(arguments)
    assert CliRunner().invoke(app, ["folder", *arguments]).output == capsys.readouterr().out


def test_an_error_ends_with_exit_code_2_and_one_sentence() -> None:
    done = CliRunner().invoke(app, ["folder", "nowhere.yaml"])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_an_unknown_command_is_refused() -> None:
    done = CliRunner().invoke(app, ["trian"])
    assert done.exit_code == 2
    assert "No such command" in done.stderr
