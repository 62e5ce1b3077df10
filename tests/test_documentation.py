"""Every command in a code block of the documentation is one that its program accepts."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.launch import launch_command_parser

from llmcls.cli import COMMANDS
from llmcls.engine.profiles import PROFILES
from tests.helpers import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Programs of others, which are not checked.
OTHERS = {
    "cp",
    "curl",
    "hf",
    "source",
    "export",
    "pip",
    "git",
    "tensorboard",
    "wandb",
    "mlflow",
    "pre-commit",
    "ls",
    "cat",
    "mkdir",
    "cd",
    "uv",
    "pkill",
    "rmdir",
}
COMMENT = re.compile(r"(^|\s)#.*$")
MAKE = re.compile(r"^([a-z ]+):", re.MULTILINE)


def commands(page: Path) -> Iterator[str]:
    """The commands in the bash blocks of a page, without comments, lines that continue joined."""
    for block in re.findall(r"^```(?:bash|console|bat)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            # A comment goes before a line is split at its semicolons: it may have some of its own.
            words = COMMENT.sub("", line.removeprefix("$ ")).strip()
            if words:
                yield words


ALL = [(page.relative_to(ROOT).as_posix(), command) for page in PAGES for command in commands(page)]


class Parsed(Exception):
    """Raised instead of running a command whose arguments were understood."""


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsers of commands stop when they have understood their arguments."""
    for name in ("parse_args", "parse_intermixed_args"):
        real = getattr(argparse.ArgumentParser, name)

        def parse(self: Any, args: Any = None, namespace: Any = None, real: Any = real) -> None:
            raise Parsed(real(self, args, namespace))

        monkeypatch.setattr(argparse.ArgumentParser, name, parse)


def accepts(module: Any, arguments: list[str]) -> None:
    with pytest.raises(Parsed):
        module.main(arguments)


def accepts_launch(arguments: list[str]) -> None:
    """``accelerate launch OPTIONS -m MODULE ARGUMENTS``."""
    options, at = launch_command_parser().parse_known_args(arguments)[0], arguments.index("-m")
    assert options.module
    assert Path(ROOT, options.config_file).is_file(), options.config_file
    accepts(importlib.import_module(arguments[at + 1]), arguments[at + 2 :])


def script(path: str) -> Any:
    """A Python file of the project as a module."""
    specification = importlib.util.spec_from_file_location(f"documented_{Path(path).stem}", ROOT / path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    # Dataclasses look up the module that they are defined in.
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


def check(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Check one command; an AssertionError or SystemExit says what is wrong with it."""
    while words and re.fullmatch(r"\w+=\S*", words[0]):
        words = words[1:]
    if ">" in words:
        words = words[: words.index(">")]
    program, *arguments = words
    if program in ("python", "python3") and arguments[0] == "-m":
        if arguments[1].startswith("llmcls"):
            accepts(importlib.import_module(arguments[1]), arguments[2:])
        elif arguments[1] == "pytest":
            assert all((ROOT / a).exists() for a in arguments[2:] if a.startswith("tests"))
    elif program in ("python", "python3", "bash"):
        assert (ROOT / arguments[0]).is_file(), arguments[0]
        if arguments[0] == "launch/run.py":
            accepts_run_py(arguments[1:], monkeypatch)
        elif arguments[0].startswith("bench/"):
            monkeypatch.setattr(sys, "argv", arguments)
            with pytest.raises(Parsed):
                script(arguments[0]).main()
    elif program == "llmcls":
        if arguments[0] == "--help":
            return
        assert arguments[0] in COMMANDS
        accepts(importlib.import_module(f"llmcls.{arguments[0]}"), arguments[1:])
    elif program == "accelerate":
        assert arguments[0] == "launch"
        accepts_launch(arguments[1:])
    elif program == "sbatch":
        scripts = [a for a in arguments if a.endswith(".sh")]
        assert len(scripts) == 1
        assert (ROOT / scripts[0]).is_file()
        profiles = [a for a in arguments if a.startswith("accel_configs/")]
        assert all((ROOT / profile).is_file() for profile in profiles)
    elif program == "make":
        targets = {t for line in MAKE.findall((ROOT / "Makefile").read_text(encoding="utf-8")) for t in line.split()}
        assert set(a for a in arguments if "=" not in a) <= targets
    elif program.endswith("run.cmd"):
        accepts_run_py(arguments, monkeypatch)
    elif program == ".ci/run":
        assert (ROOT / program).is_file()
    else:
        assert program in OTHERS or program.startswith((".venv", "set", "llmcls.")), f"unknown program {program}"


def accepts_run_py(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    module = script("launch/run.py")
    reached: list[Any] = []
    for name in ("set_up", "train_command", "run_tests", "demo", "execute"):
        monkeypatch.setattr(module, name, lambda *a, **_: reached.append(a) or 0)
    module.main(arguments)
    assert reached


@pytest.mark.usefixtures("parse_only")
@pytest.mark.parametrize(("page", "command"), ALL, ids=[f"{page}: {command[:60]}" for page, command in ALL])
def test_a_command_in_the_documentation_is_accepted(page: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    separator = ";" if ";" in command else "&&"
    for part in command.split(separator):
        check(shlex.split(part, posix=not part.strip().startswith("launch\\")), monkeypatch)


def test_a_wrong_command_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        check(shlex.split("python -m llmcls.predict --rnu x"), monkeypatch)
    with pytest.raises(AssertionError):
        check(["llmcls", "trian", "recipe.yaml"], monkeypatch)
    with pytest.raises(AssertionError):
        check(["make", "everything"], monkeypatch)


def test_the_documentation_has_commands_for_every_profile_and_command() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert all(f"`{path.stem}`" in text for path in PROFILES.glob("*.yaml"))
    assert all(f"`{name}`" in text or f"llmcls.{name}" in text for name in COMMANDS)
