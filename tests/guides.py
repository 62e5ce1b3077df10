"""Walk through the guides of the documentation: run the commands of their blocks, in order, with a tiny model.

``python -m tests.guides [PAGE ...]`` (``make guides``)

The commands run in a folder of their own, which has the files that the pages speak of. `sbatch`, `sky` and `kubectl`
are stand-ins that check the scripts and files they are given. What needs a network, or would set up an environment, is
left out with its reason. Ends with 1 if a command fails.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from tests.helpers import ROOT, TOPICS

GUIDES = {
    "your-data": "my CSV",
    "windows": "my laptop",
    "cluster": "my cluster",
    "dashboards": "my dashboard",
    "trained-model": "my server",
}
# The beginning of a command, and why it is not run.
LEFT_OUT = {
    "pip install": "needs a network",
    "wandb login": "needs an account",
    "wandb sync": "needs a network",
    "hf download": "needs a network",
    "mlflow ui": "needs the whole MLflow",
    "python -m llmcls.prepare": "needs a network",
    "launch/run.py demo": "needs a network",
    "launch/run.py test": "is what CI runs",
    "launch/run.py setup": "needs a network",
    ".venv": "activates an environment",
    "set ": "sets an address that only the reader knows",
    "rmdir": "removes an environment",
}
# Commands that do not end: where they answer.
SERVERS = {"tensorboard": "http://127.0.0.1:6016", "python -m llmcls.serve": "http://127.0.0.1:8000/health"}
SUBMIT = """#!/bin/sh
for word in "$@"; do case "$word" in *.sh) bash -n "$word" || exit 1;; *.yaml) test -f "$word" || exit 1;; esac; done
echo "submitted: $*"
"""
SECONDS = 600


def commands(page: str) -> list[str]:
    """The commands of a guide, as a shell on Linux takes them."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    found = []
    for kind, block in re.findall(r"^```(bash|console|bat)\n(.*?)^```", text, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            command = line.removeprefix("$ ").strip()
            if command and not command.startswith("#"):
                found.append(command.replace("\\", "/").replace("run.cmd", "run.py") if kind == "bat" else command)
    return found


def reason_to_leave_out(command: str) -> str | None:
    """Why a command is not run; None if it is."""
    return next((reason for beginning, reason in LEFT_OUT.items() if command.startswith(beginning)), None)


def main() -> None:
    """Walk, print a table, and end with 1 after a failure."""
    pages = sys.argv[1:] or list(GUIDES)
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for page in pages:
            variables: dict[str, str] = {}
            with ended() as running:
                for command in commands(page):
                    start = time.monotonic()
                    outcome = left_out = reason_to_leave_out(command)
                    if not left_out:
                        outcome = walk(command, folder, variables, running)
                    failed += outcome is not None and not left_out
                    words = f"left out: {left_out}" if left_out else outcome or f"ran, {time.monotonic() - start:.0f} s"
                    print(f"{GUIDES[page]:13} {command[:90]:90} {words}", flush=True)
    sys.exit(min(failed, 1))


@contextmanager
def ended() -> Iterator[list[subprocess.Popen[str]]]:
    """A list of servers that are ended with the block."""
    running: list[subprocess.Popen[str]] = []
    try:
        yield running
    finally:
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def walk(command: str, folder: Path, variables: dict[str, str], running: list[subprocess.Popen[str]]) -> str | None:
    """Run one command; what failed, or None."""
    if command.startswith("export "):
        name, _, value = command.removeprefix("export ").partition("=")
        variables[name] = value
        return None
    if command.startswith("launch/run.py"):
        command = f"python {command}"
    environment = os.environ | variables | {
        "PATH": os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    shell = ["bash", "-c", command]
    address = next((url for beginning, url in SERVERS.items() if command.startswith(beginning)), None)
    if address:
        if command.startswith("tensorboard"):
            shell[-1] += " --port 6016"
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(
            shell, cwd=folder, env=environment, stdout=quiet, stderr=quiet, text=True, start_new_session=True
        )
        running.append(process)
        return None if answers(address, process) else "FAILED: it does not answer"
    done = subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS)
    if "llmcls.init" in command:
        # Without a network, the model that it proposes cannot be had.
        for path in (folder / "recipes").glob("reviews.yaml"):
            text = re.sub(r"model_name: \S+", "model_name: tiny-llama", path.read_text(encoding="utf-8"))
            path.write_text(re.sub(r"(\nexp:)", r"\n  max_steps: 4\1", text), encoding="utf-8")
    if done.returncode:
        return f"FAILED with {done.returncode}: {(done.stderr or done.stdout).strip().splitlines()[-1][:200]}"
    return None


def answers(address: str, process: subprocess.Popen[str]) -> bool:
    """Whether a server answers within the time of a command."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return True
        except OSError:
            time.sleep(1)
    return False


def prepare(folder: Path) -> None:
    """Write a tiny model, data, recipes, and finished runs under the names of the pages."""
    from llmcls.datasets.products import make_corpus, write_data
    from llmcls.model.tiny import write_tiny_llama
    from tests.conftest import small_recipe

    for name in ("accel_configs", "llmcls"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("launch", "slurm"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("bin", "recipes", "data", "products"):
        (folder / name).mkdir()
    for name, words in {
        "python": "",
        "llmcls": "-m llmcls",
        "accelerate": "-m accelerate.commands.accelerate_cli",
    }.items():
        path = folder / "bin" / name
        path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words} "$@"\n')
        path.chmod(0o755)
    for name in ("sbatch", "sky", "kubectl"):
        (folder / "bin" / name).write_text(SUBMIT)
        (folder / "bin" / name).chmod(0o755)
    write_tiny_llama(folder / "tiny-llama", make_corpus(300, seed=0), seed=0, steps=3)
    write_data(folder / "products", 7, {"train": 160, "validation": 40, "test": 61})
    for copy in ("reviews.csv", "new.csv", "data/new_texts.csv"):
        shutil.copy(folder / "products" / "train.csv", folder / copy)
    (folder / "texts.txt").write_text("A novel about a garden.\nA drum for children.\n")
    (folder / "rows.jsonl").write_text('{"uid": "1", "title": "A novel", "description": "about a garden"}\n')
    values = small_recipe(Path("tiny-llama"), Path("products"), Path("outputs"))
    values["train"] |= {"max_steps": 4, "report_to": ["tensorboard"]}
    values["data"]["label_columns"] = list(TOPICS)
    for name in ("mine", "amazon", "quickstart"):
        (folder / "recipes" / f"{name}.yaml").write_text(yaml.safe_dump(values))
    values["model"] |= {"model_name": "scratch-model", "lora_r": 0}
    (folder / "recipes" / "reuters.yaml").write_text(yaml.safe_dump(values))
    train = [sys.executable, "-m", "llmcls.train", "recipes/mine.yaml"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    subprocess.run(train, cwd=folder, env=environment, check=True, capture_output=True)
    trained = folder / "outputs" / "tiny-llama" / "products"
    shutil.copytree(trained, folder / "outputs" / "smollm2-135m" / "messages")
    shutil.copytree(trained / "run_0" / "model", folder / "name")
    for file in ("thresholds.json", "calibration.json", "environment.json", "metrics.json", "recipe.yaml"):
        shutil.copy(trained / "run_0" / file, folder / "name")


if __name__ == "__main__":
    main()
