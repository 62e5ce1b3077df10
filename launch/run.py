"""One command on every system: set up, demo, test, and train with the profile that fits the hardware.

    python launch/run.py demo
    python launch/run.py test
    python launch/run.py train recipes/amazon.yaml [--profile ddp] [--dry-run] [--slurm] [key=value ...]
    python launch/run.py train recipes/amazon.yaml --cloud --accelerator A100-80GB --gpus-per-node 4 --storage my-bucket

Needs only Python: sets up the environment if there is none, and then runs the commands of llmcls.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

from clouds import CloudError, Job, sky_command, sky_task, to_yaml, train_job  # noqa: E402
from setup_env import ROOT, installed, python_to_use, set_up  # noqa: E402

from llmcls.common.secrets import token_to_environment  # noqa: E402
from llmcls.engine.hardware import find_hardware  # noqa: E402

# Run tests in parallel: in two processes more than there are cores, because some tests wait for a time or for another
# process; more than four would need too much memory.
PARALLEL = ["-n", str(min(4, (os.cpu_count() or 1) + 2)), "--dist", "loadfile"]
USUAL_TESTS = "not long"
UNIT_TESTS = "not slow and not distributed and not slurm and not gpu"
DOCS = ["build", "--strict", "--quiet"]
CHECKS = (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["mkdocs", *DOCS])


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand and return the exit code."""
    parser = argparse.ArgumentParser(prog="launch/run.py", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("setup", help="make .venv and install the pinned packages")
    commands.add_parser("demo", help="set up, write a small data set, get a pretrained model, train, predict")
    test = commands.add_parser("test", help="set up, run all tests, the linter, the type checker and the docs build")
    test.add_argument("pytest", nargs=argparse.REMAINDER, help="passed on to pytest")
    fast = commands.add_parser("fast", help="set up, run only the unit tests, for quick feedback")
    fast.add_argument("pytest", nargs=argparse.REMAINDER, help="passed on to pytest")
    docs = commands.add_parser(
        "docs", help="set up, build the documentation into site/; --serve shows it while you edit"
    )
    docs.add_argument("--serve", action="store_true")
    train = commands.add_parser("train", help="train a recipe with the profile that fits this machine")
    train.add_argument("recipe")
    train.add_argument("overrides", nargs="*", metavar="section.key=value")
    train.add_argument("--profile", help="a name in accel_configs/ or a file; chosen from the hardware if left out")
    train.add_argument("--processes", type=int, help="number of processes over all machines; one per GPU if left out")
    train.add_argument("--machines", type=int, help="number of machines (with --machine-rank and --main-ip)")
    train.add_argument("--machine-rank", type=int, default=0)
    train.add_argument("--main-ip", help="address of machine 0")
    train.add_argument("--main-port", type=int, help="port of machine 0; default: 29500")
    train.add_argument("--model-size", help="such as 8B, to choose the profile; read from the recipe if left out")
    train.add_argument("--hardware", help="a JSON file that describes the hardware, as of `llmcls train`")
    train.add_argument("--gpus-per-node", type=int, help="the hardware in short: GPUs of each machine; 0 for CPUs")
    train.add_argument("--gpu-memory", type=float, metavar="GIB", help="with --gpus-per-node: memory of each GPU")
    train.add_argument("--dry-run", action="store_true", help="print the command without running it")
    train.add_argument("--slurm", action="store_true", help="submit slurm/train.sh instead of running here")
    where = train.add_mutually_exclusive_group()
    where.add_argument("--cloud", action="store_true", help="write a SkyPilot task and start it as a managed job")
    where.add_argument("--kubernetes", action="store_true", help="write a Kubeflow TrainJob and apply it")
    train.add_argument("--storage", help="of --cloud: a bucket; of --kubernetes: a volume claim; for the results")
    train.add_argument("--accelerator", help="of --cloud: the GPU, as SkyPilot calls it")
    train.add_argument("--image", help="of --kubernetes: the container image, with this project and its packages")
    train.add_argument("--out", help="of --cloud and --kubernetes: the file to write; default: by the recipe's name")
    arguments, unknown = parser.parse_known_args(argv)
    # argparse reports overrides that follow an option as unknown, although they are positional arguments.
    if unknown and (arguments.command != "train" or any(u.startswith("-") for u in unknown)):
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if arguments.command == "train":
        arguments.overrides = token_to_environment(arguments.overrides + unknown)
        if not installed():
            set_up(bool(find_hardware().gpus))
        return train_command(arguments)
    set_up(bool(find_hardware().gpus))
    if arguments.command == "demo":
        return demo()
    if arguments.command == "test":
        return run_tests(arguments.pytest)
    if arguments.command == "fast":
        return execute([python_to_use(), "-m", "pytest", *PARALLEL, "-m", UNIT_TESTS, *arguments.pytest])
    if arguments.command == "docs":
        return execute([python_to_use(), "-m", "mkdocs", *(["serve"] if arguments.serve else DOCS)])
    return 0


def demo() -> int:
    """Run the quickstart: make the data, get the model, train, and predict. Returns the exit code."""
    python = python_to_use()
    first = [python, "-m", "llmcls.quickstart", "--out", "demo"]
    show(first)
    code = execute(first)
    if code:
        return code
    # Where the pretrained model cannot be had, the quickstart makes a tiny one and the data that go with it.
    if Path("demo/smollm2-135m").is_dir():
        recipe, data, results = "recipes/quickstart.yaml", "demo/data", "outputs/smollm2-135m/messages"
    else:
        recipe, data, results = "recipes/quickstart_tiny.yaml", "demo/products", "outputs/tiny-llama/products"
    predictions = "demo/predictions.jsonl"
    steps = [
        [python, "-m", "llmcls", "train", recipe],
        [python, "-m", "llmcls.predict", "--recipe", recipe, "--input", f"{data}/test.csv", "--output", predictions],
    ]
    for step in steps:
        show(step)
        code = execute(step)
        if code:
            return code
    print(
        "\ndemo: done\n"
        f"  data          {data}/{{train,validation,test}}.csv\n"
        f"  summary       {results}/summary.md, with the baselines beside the model\n"
        f"  report        {results}/run_0/report.html\n"
        f"  predictions   {predictions}\n"
        "  dashboards    tensorboard --logdir outputs\n"
        f"  next          copy {recipe}, name your CSV files and columns, and train it",
        flush=True,
    )
    return 0


def run_tests(extra: list[str]) -> int:
    """Run the tests, the linter, the type checker and the docs build; returns the worst exit code."""
    python = python_to_use()
    # Some tests wait, for a time or for another process. The other checks, which need half a minute, fill these gaps.
    with ThreadPoolExecutor(1) as pool:
        checks = [pool.submit(checked, [python, "-m", *command]) for command in CHECKS]
        codes = [execute([python, "-m", "pytest", *PARALLEL, "--durations=15", "-m", USUAL_TESTS, *extra])]
        for check in checks:
            code, said = check.result()
            print(said, end="", flush=True)
            codes.append(code)
    return max(codes)


def checked(command: list[str]) -> tuple[int, str]:
    """Run a command in the background; returns its exit code and what it wrote."""
    done = subprocess.run(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", check=False
    )
    return done.returncode, done.stdout


def train_command(arguments: argparse.Namespace) -> int:
    """Train here with ``llmcls train``, or submit a job. Returns the exit code."""
    options = {
        "--profile": arguments.profile,
        "--machines": arguments.machines,
        "--model-size": arguments.model_size,
        "--hardware": arguments.hardware,
        "--gpus": arguments.gpus_per_node,
        "--gpu-memory": arguments.gpu_memory,
    }
    elsewhere = next((name for name in ("slurm", "cloud", "kubernetes") if getattr(arguments, name)), None)
    if elsewhere:
        return submit(arguments, words(options), elsewhere)
    options |= {
        "--processes": arguments.processes,
        "--machine-rank": arguments.machine_rank or None,
        "--main-ip": arguments.main_ip,
        "--main-port": arguments.main_port,
    }
    command = [python_to_use(), "-m", "llmcls", "train", arguments.recipe, *arguments.overrides, *words(options)]
    return execute([*command, *(["--dry-run"] if arguments.dry_run else [])])


def words(options: dict[str, Any]) -> list[str]:
    """The options that were given, as words of a command line."""
    return [str(word) for pair in options.items() if pair[1] is not None for word in pair]


def submit(arguments: argparse.Namespace, options: list[str], elsewhere: str) -> int:
    """Choose a profile for machines elsewhere, print the command that starts the job, and run it.

    Returns the exit code.
    """
    if arguments.hardware is None and arguments.gpus_per_node is None:
        print(
            f"error: --{elsewhere}: this machine is not the one that trains, so say what a node has: --gpus-per-node 4 "
            "--gpu-memory 80, or --gpus-per-node 4 --profile ddp, or --gpus-per-node 0, or --hardware FILE",
            file=sys.stderr,
        )
        return 2
    chosen = choose([arguments.recipe, *arguments.overrides, *options])
    if isinstance(chosen, int):
        return chosen
    if elsewhere != "slurm":
        return cloud_command(arguments, chosen, arguments.processes or chosen["processes"])
    gpus = [f"--gpus-per-node={chosen['gpus']}"] if chosen["gpus"] else []
    # Four cores for each process; the script asks for those of one process.
    cores = [f"--cpus-per-task={4 * chosen['gpus']}"] if chosen["gpus"] > 1 else []
    command = ["sbatch", f"--nodes={chosen['machines']}", *gpus, *cores, "slurm/train.sh", arguments.recipe]
    command += [shown(Path(chosen["file"])), *arguments.overrides]
    show(command)
    return 0 if arguments.dry_run else execute(command)


def cloud_command(arguments: argparse.Namespace, chosen: dict[str, Any], processes: int) -> int:
    """Write the file of a job on rented machines, print the command that starts it, and run it. Returns its exit code.

    Parameters
    ----------
    arguments : Namespace
    chosen : dict
        What `choose` found.
    processes : int
        Of all machines.
    """
    option = "--cloud" if arguments.cloud else "--kubernetes"
    recipe = Path(shown(Path(arguments.recipe).resolve()))
    try:
        if Path.cwd() != ROOT or ".." in recipe.parts:
            raise CloudError(f"{option} takes this project along: start it in {ROOT}, with a recipe below that folder")
        if not arguments.storage:
            what = "a bucket" if arguments.cloud else "a volume claim"
            raise CloudError(f"{option}: the machines do not stay, so say where results do: --storage with {what}")
        job = Job(
            recipe.as_posix(), arguments.overrides, Path(shown(Path(chosen["file"]))).as_posix(), chosen["machines"],
            chosen["gpus"], processes, chosen["files"], arguments.storage, arguments.accelerator, arguments.image,
            "HF_TOKEN" in os.environ,
        )  # fmt: skip
        content = sky_task(job) if arguments.cloud else train_job(job)
    except CloudError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    file = arguments.out or f"{job.name}.{'sky' if arguments.cloud else 'trainjob'}.yaml"
    Path(file).write_text(to_yaml(content), encoding="utf-8")
    print(f"wrote {file}", flush=True)
    command = sky_command(job, file) if arguments.cloud else ["kubectl", "apply", "--filename", file]
    show(command)
    if arguments.dry_run:
        return 0
    if shutil.which(command[0]) is None:
        print(f"error: {command[0]} is not installed; install it, or start {file} elsewhere", file=sys.stderr)
        return 2
    return execute(command)


def choose(arguments: list[str]) -> dict[str, Any] | int:
    """Choose a profile with `llmcls.profile` and print the reason.

    Parameters
    ----------
    arguments : list of str
        Of `llmcls.profile`.

    Returns
    -------
    dict or int
        The choice: "profile", "file", "processes", "reason", "gpus" and "machines". After an error, its exit code.
    """
    # Run in the folder of the user, because relative paths on the command line refer to it.
    command = [python_to_use(), "-m", "llmcls.profile", *arguments, "--json"]
    done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True, encoding="utf-8")
    if done.returncode:
        return done.returncode
    chosen: dict[str, Any] = json.loads(done.stdout)
    if chosen["reason"]:
        print(f"profile: {chosen['profile']} ({chosen['reason']})", flush=True)
    return chosen


def shown(path: Path) -> str:
    """A path, relative to the current folder if possible."""
    try:
        return os.path.relpath(path)
    except ValueError:  # on another drive of Windows
        return str(path)


def show(command: list[str]) -> None:
    """Print a command as a user would type it on this system."""
    print("$ " + (subprocess.list2cmdline(command) if os.name == "nt" else shlex.join(command)), flush=True)


def execute(command: list[str]) -> int:
    """Run a command in the foreground and in the folder of the user; returns the exit code."""
    process = subprocess.Popen(command, env=environment())
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            # The command has received it too, and saves. `subprocess.run` would kill it after a quarter of a second.
            continue


def environment() -> dict[str, str]:
    """The environment of a child process: UTF-8, and llmcls can be imported from any folder, installed or not."""
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    return os.environ | {"PYTHONUTF8": "1", "PYTHONPATH": path}


if __name__ == "__main__":
    sys.exit(main())
