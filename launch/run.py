"""One command for every system: set up, demo, test, and train with the profile that fits the hardware.

    python launch/run.py demo
    python launch/run.py test
    python launch/run.py train recipes/amazon.yaml [--profile ddp] [--dry-run] [--slurm] [key=value ...]

Needs nothing but Python: it sets up the environment if there is none, assembles the ``accelerate launch`` command,
prints it and runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

from setup_env import ROOT, installed, python_to_use, set_up  # noqa: E402

from llmcls.engine.hardware import find_hardware  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; returns the exit code."""
    parser = argparse.ArgumentParser(prog="launch/run.py", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("setup", help="make .venv and install the pinned packages")
    commands.add_parser("demo", help="set up, make a small data set and model, train, predict")
    test = commands.add_parser("test", help="set up, run the tests and the linter")
    test.add_argument("pytest", nargs=argparse.REMAINDER, help="passed on to pytest")
    train = commands.add_parser("train", help="train a recipe on what this machine has")
    train.add_argument("recipe")
    train.add_argument("overrides", nargs="*", metavar="section.key=value")
    train.add_argument("--profile", help="a name in accel_configs/ or a file; chosen from the hardware if left out")
    train.add_argument("--processes", type=int, help="processes in all; one per GPU if left out")
    train.add_argument("--machines", type=int, help="number of machines (with --machine-rank and --main-ip)")
    train.add_argument("--machine-rank", type=int, default=0)
    train.add_argument("--main-ip", help="address of machine 0")
    train.add_argument("--main-port", type=int, default=29500)
    train.add_argument("--model-size", help="for the choice of profile, e.g. 8B; read from the recipe if left out")
    train.add_argument("--hardware", help="a JSON file that describes the hardware instead of looking at it")
    train.add_argument("--dry-run", action="store_true", help="print the command, run nothing")
    train.add_argument("--slurm", action="store_true", help="submit slurm/train.sh instead of running here")
    arguments, unknown = parser.parse_known_args(argv)
    # argparse takes overrides that follow an option for unknown; they are positional all the same.
    if unknown and (arguments.command != "train" or any(u.startswith("-") for u in unknown)):
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if arguments.command == "train":
        arguments.overrides += unknown
        if not installed():
            set_up(bool(find_hardware().gpus))
        return train_command(arguments)
    set_up(bool(find_hardware().gpus))
    if arguments.command == "demo":
        return demo()
    if arguments.command == "test":
        return run_tests(arguments.pytest)
    return 0


def demo() -> int:
    """The quickstart from nothing to predictions."""
    python, recipe = python_to_use(), "recipes/quickstart.yaml"
    predictions = "demo/predictions.jsonl"
    chosen = choose([recipe])
    if isinstance(chosen, int):
        return chosen
    steps = [
        [python, "-m", "llmcls.quickstart", "--out", "demo"],
        accelerate_command(recipe, [], Path(chosen["file"]), chosen["processes"]),
        [python, "-m", "llmcls.predict", "--recipe", recipe, "--input", "demo/data/test.csv", "--output", predictions],
    ]
    for step in steps:
        show(step)
        code = run(step)
        if code:
            return code
    print(
        "\ndemo: done\n"
        "  data          demo/data/{train,validation,test}.csv\n"
        "  summary       outputs/tiny-llama/products/summary.md\n"
        "  report        outputs/tiny-llama/products/run_0/report.html\n"
        f"  predictions   {predictions}\n"
        "  dashboards    tensorboard --logdir outputs\n"
        "  next          copy recipes/quickstart.yaml, name your CSV files and columns, and train it",
        flush=True,
    )
    return 0


def run_tests(extra: list[str]) -> int:
    """Tests, then the linter; both are run, either can fail."""
    python = python_to_use()
    steps = [
        [python, "-m", "pytest", *extra],
        [python, "-m", "ruff", "check", "."],
        [python, "-m", "ruff", "format", "--check", "."],
    ]
    return max(run(step) for step in steps)


def train_command(arguments: argparse.Namespace) -> int:
    """Choose a profile, print the command, run or submit it."""
    options = {
        "--profile": arguments.profile,
        "--machines": arguments.machines,
        "--model-size": arguments.model_size,
        "--hardware": arguments.hardware,
    }
    words = [str(word) for pair in options.items() if pair[1] is not None for word in pair]
    chosen = choose([arguments.recipe, *arguments.overrides, *words])
    if isinstance(chosen, int):
        return chosen
    profile, machines = Path(chosen["file"]), chosen["machines"]
    processes = arguments.processes or chosen["processes"]
    if arguments.slurm:
        gpus = [f"--gpus-per-node={chosen['gpus']}"] if chosen["gpus"] else []
        command = ["sbatch", f"--nodes={machines}", *gpus, "slurm/train.sh", arguments.recipe, shown(profile)]
        command += arguments.overrides
    else:
        command = accelerate_command(arguments.recipe, arguments.overrides, profile, processes)
        if machines > 1:
            at = command.index("-m", 3)
            command[at:at] = [
                "--num_machines", str(machines), "--machine_rank", str(arguments.machine_rank),
                "--main_process_ip", arguments.main_ip or "ADDRESS_OF_MACHINE_0",
                "--main_process_port", str(arguments.main_port),
            ]  # fmt: skip
    show(command)
    if arguments.dry_run:
        return 0
    if not arguments.slurm and machines > 1 and not arguments.main_ip:
        print("error: several machines need --main-ip, the address of machine 0", file=sys.stderr)
        return 2
    if not arguments.slurm:
        # The launcher wraps a user's error in its own traceback; this finds it first and reports it plainly.
        code = run([python_to_use(), "-m", "llmcls.check", arguments.recipe, *arguments.overrides])
        if code:
            return code
    return run(command)


def choose(arguments: list[str]) -> dict[str, Any] | int:
    """What `llmcls.profile` chooses, or its exit code after an error; prints the reason for a choice."""
    # From where the user is, so that relative paths mean what they say; the profiles are the project's.
    command = [python_to_use(), "-m", "llmcls.profile", *arguments, "--json"]
    done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True, encoding="utf-8")
    if done.returncode:
        return done.returncode
    chosen: dict[str, Any] = json.loads(done.stdout)
    if chosen["reason"]:
        print(f"profile: {chosen['profile']} ({chosen['reason']})", flush=True)
    return chosen


def accelerate_command(recipe: str, overrides: list[str], profile: Path, processes: int) -> list[str]:
    """The command a person would type."""
    launch = [python_to_use(), "-m", "accelerate.commands.launch", "--config_file", shown(profile)]
    return [*launch, "--num_processes", str(processes), "-m", "llmcls.train", recipe, *overrides]


def shown(path: Path) -> str:
    """A path relative to here where it can be."""
    try:
        return os.path.relpath(path)
    except ValueError:  # another drive on Windows
        return str(path)


def show(command: list[str]) -> None:
    """Print a command as it would be typed on this system."""
    typed = ["accelerate", "launch", *command[3:]] if "accelerate.commands.launch" in command else command
    print("$ " + (subprocess.list2cmdline(typed) if os.name == "nt" else shlex.join(typed)), flush=True)


def run(command: list[str]) -> int:
    """Run in the foreground, from where the user is; returns the exit code."""
    return subprocess.run(command, env=environment()).returncode


def environment() -> dict[str, str]:
    """The environment of a child process: UTF-8, and this project importable from any folder, installed or not."""
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    return os.environ | {"PYTHONUTF8": "1", "PYTHONPATH": path}


if __name__ == "__main__":
    sys.exit(main())
