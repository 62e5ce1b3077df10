"""Starting a training with a profile, by the launcher of accelerate, in a way that ends with what matters.

The launcher would print a traceback of its own below the error of a training, and below an interrupt.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import shlex
import subprocess
import sys
from typing import Any

from llmcls.common.command import add_recipe_arguments, command_parser
from llmcls.common.files import read_json
from llmcls.common.secrets import token_to_environment
from llmcls.common.signals import EXIT_BY_KEYBOARD, EXIT_INTERRUPTED, is_launched
from llmcls.common.user_error import UserError
from llmcls.engine.choice import AUTO, Choice, add_hardware_arguments, choose
from llmcls.recipe.load import load_recipe
from llmcls.recipe.schema import Recipe
from llmcls.results.run_folder import PROGRESS, ExperimentFolder

DESCRIPTION = "Fine-tune a text classifier."
EPILOG = (
    "`llmcls train` starts the processes that the profile asks for. `python -m llmcls.train` without options trains in "
    "its own process, or in those of `accelerate launch`."
)


def train_parser() -> argparse.ArgumentParser:
    """The parser of ``llmcls train`` and ``python -m llmcls.train``."""
    parser = command_parser("train", DESCRIPTION)
    parser.epilog = EPILOG
    add_recipe_arguments(parser)
    parser.add_argument(
        "--profile",
        help=f"a name in accel_configs/, a file, or {AUTO} for the one that fits this machine, the default of `llmcls "
        "train`",
    )
    parser.add_argument("--processes", type=int, help="number of processes over all machines; one per GPU if left out")
    add_hardware_arguments(parser)
    parser.add_argument("--machine-rank", type=int, default=0, help="with --machines: number of this one, from 0")
    parser.add_argument("--main-ip", help="with --machines: address of machine 0")
    parser.add_argument("--main-port", type=int, help="with --machines: port of machine 0; default: 29500")
    parser.add_argument("--dry-run", action="store_true", help="print the command of accelerate without running it")
    return parser


def main(argv: list[str]) -> None:
    """``llmcls train``: start the processes of a training, unless a launcher has started this one."""
    if is_launched():
        importlib.import_module("llmcls.train").main(argv)
        return
    launch_training(train_parser().parse_intermixed_args(argv))


def wants_processes(arguments: argparse.Namespace) -> bool:
    """Whether a command line says anything about where to train, so that processes have to be started."""
    given = {name: value for name, value in vars(arguments).items() if name not in ("recipe", "overrides")}
    return not is_launched() and any(given.values())


def launch_training(arguments: argparse.Namespace) -> None:
    """Choose the profile, print the command, and run it; ends with the exit code of the training.

    Parameters
    ----------
    arguments : argparse.Namespace
        From `train_parser`.

    Raises
    ------
    UserError
        If recipe, profile or hardware cannot be used, or a process of the training was killed.
    """
    overrides = token_to_environment(arguments.overrides)
    recipe = load_recipe(arguments.recipe, overrides)
    found = choose(arguments, lambda: recipe)
    if found.reason:
        print(f"profile: {found.profile.stem} ({found.reason})", flush=True)
    command = accelerate_arguments(found, arguments, overrides)
    typed = ["accelerate", "launch", *command]
    print("$ " + (subprocess.list2cmdline(typed) if os.name == "nt" else shlex.join(typed)), flush=True)
    if arguments.dry_run:
        return
    if found.hardware.machines > 1 and not arguments.main_ip:
        raise UserError("several machines need --main-ip, the address of machine 0")
    sys.exit(_run(command, recipe))


def accelerate_arguments(found: Choice, arguments: argparse.Namespace, overrides: list[str]) -> list[str]:
    """What stands behind ``accelerate launch``."""
    command = [
        "--config_file",
        _shown(str(found.profile)),
        "--num_processes",
        str(arguments.processes or found.processes),
    ]
    if found.hardware.machines > 1:
        command += ["--num_machines", str(found.hardware.machines), "--machine_rank", str(arguments.machine_rank)]
        command += ["--main_process_ip", arguments.main_ip or "ADDRESS_OF_MACHINE_0"]
        command += ["--main_process_port", str(arguments.main_port or 29500)]
    return [*command, "-m", "llmcls.train", arguments.recipe, *overrides]


def _run(command: list[str], recipe: Recipe) -> int:
    """Run the launcher of accelerate in this process; the exit code of the training."""
    launcher: Any = importlib.import_module("accelerate.commands.launch")
    elastic: Any = importlib.import_module("torch.distributed.elastic.multiprocessing")
    errors: Any = importlib.import_module("torch.distributed.elastic.multiprocessing.errors")
    # Its log lines repeat the end of a process, with its command line, and stand below what the process said.
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        launcher.launch_command(launcher.launch_command_parser().parse_args(command))
    except errors.ChildFailedError as failure:
        return _exit_code(failure.get_first_failure()[1].exitcode)
    except subprocess.CalledProcessError as failure:
        return _exit_code(failure.returncode)
    except elastic.SignalException as stopped:
        print(saved_words(recipe), file=sys.stderr, flush=True)
        return EXIT_BY_KEYBOARD if stopped.sigval.name in ("SIGINT", "SIGBREAK") else EXIT_INTERRUPTED
    except KeyboardInterrupt:
        print(saved_words(recipe), file=sys.stderr, flush=True)
        return EXIT_BY_KEYBOARD
    finally:
        logging.disable(disabled)
    return 0


def _exit_code(code: int) -> int:
    """The exit code of a process of the training.

    Raises
    ------
    UserError
        If a signal killed it, of which it could say nothing itself.
    """
    if code < 0:
        raise UserError(
            f"a process of the training was killed by signal {-code}; often the machine had too little memory: see "
            "`llmcls check` for what the recipe needs. The same command resumes from the last checkpoint"
        )
    return code


def saved_words(recipe: Recipe) -> str:
    """What an interrupted experiment has saved, in words."""
    experiment = ExperimentFolder.of(recipe)
    for number, seed in enumerate(recipe.exp.seeds):
        run = experiment.run(number)
        if run.metrics.is_file():
            continue
        if (run.last_checkpoint / PROGRESS).is_file():
            step = read_json(run.last_checkpoint / PROGRESS)["step"]
            return f"saved: seed {seed} after step {step} ({run.path}); run the same command again to resume"
        break
    else:
        return "all seeds are trained; run the same command again for the summary"
    done = f", but {number} finished seed(s)" if number else ""
    return f"nothing was saved of seed {seed}{done}; the same command starts it again"


def _shown(path: str) -> str:
    """A path, relative to the current folder if possible."""
    try:
        return os.path.relpath(path)
    except ValueError:  # on another drive of Windows
        return path
