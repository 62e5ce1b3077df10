"""What several test files use: paths, small tables, and commands, run in this process or in new ones.

Heavy libraries are imported inside the functions, so that a test file that needs none of them starts at once.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
REUTERS = ROOT.parent / "shared" / "data" / "reuters10"
STORY_LLAMA = ROOT.parent / "shared" / "models" / "story-llama"
TOPICS = ["books", "music", "movies", "kitchen", "garden", "electronics", "toys", "sports", "pets", "vintage"]

needs_real_data = pytest.mark.skipif(
    not (REUTERS.is_dir() and STORY_LLAMA.is_dir()),
    reason="the Reuters data and story-llama are not in the folder shared/ next to the project",
)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write dictionaries as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a CSV as dictionaries."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# What a line of metrics.jsonl says of the machine, so that two equal trainings differ in it.
MEASURED = ("time", "samples_per_second", "tokens_per_second", "memory_gb", "share_of_peak")


def fresh_accelerator() -> None:
    """Let the next command open its own process group, as a new process would."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


def train(recipe: Path, *overrides: str) -> Path:
    """Train in this process.

    Returns
    -------
    The experiment folder.
    """
    from llmcls.recipe.load import load_recipe
    from llmcls.results.run_folder import ExperimentFolder
    from llmcls.train import main

    fresh_accelerator()
    main([str(recipe), *overrides])
    return ExperimentFolder.of(load_recipe(recipe, list(overrides))).path


def predict(*arguments: Any) -> None:
    """Predict in this process."""
    from llmcls.predict import main

    fresh_accelerator()
    main([str(a) for a in arguments])


def metrics_of(run: Path) -> dict[str, Any]:
    """The metrics of a run without its speed, which differs from run to run."""
    found = read_json(run / "metrics.json")
    del found["training"]
    return found


def assert_same_metrics(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same names, and the same values up to the nine decimals of a predictions file."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_same_metrics(found[name], value)
        elif isinstance(value, list) or value is None:
            assert found[name] == value, name
        else:
            assert found[name] == pytest.approx(value, abs=1e-6), name


def assert_same_predictions(found: Path, expected: Path) -> None:
    """The same rows and labels, and the same probabilities up to the order of summation of a merged adapter."""
    for line, known in zip(read_lines(found), read_lines(expected), strict=True):
        assert line.pop("probabilities") == pytest.approx(known.pop("probabilities"), abs=1e-6)
        assert line == known


def refusal(capsys: pytest.CaptureFixture[str], command: str, *arguments: Any) -> str:
    """Run a command that must end with exit code 2.

    Returns
    -------
    The only error sentence that it printed.
    """
    import importlib

    from llmcls.common.command import run_command

    module = importlib.import_module(f"llmcls.{command}")
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: module.main([str(a) for a in arguments]))
    assert stop.value.code == 2
    sentences = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1
    return sentences[0]


def run_module(module: str, *arguments: Any, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """``python -m MODULE ARGUMENTS`` in a new process, with the project importable from any folder."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    folders = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(folders)} | environment
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, encoding="utf-8")


def launch(
    processes: int, module: str, *arguments: Any, profile: str = "cpu", **environment: str
) -> subprocess.CompletedProcess[str]:
    """``accelerate launch --config_file accel_configs/PROFILE.yaml --num_processes N -m MODULE ARGUMENTS``."""
    options = ["--config_file", f"accel_configs/{profile}.yaml", "--num_processes", processes]
    # A free port: several launchers may run at the same time.
    options += ["--main_process_port", 0]
    return run_module("accelerate.commands.launch", *options, "-m", module, *arguments, **environment)


def saves_on(signal_name: str, code: int, seconds: float = 0.0) -> str:
    """A program that makes the file ``started``, and after a signal and so many seconds ``saved``; then it ends."""
    return (
        "import pathlib, signal, sys, time\n"
        f"def save(*_): time.sleep({seconds}); pathlib.Path('saved').touch(); sys.exit({code})\n"
        f"signal.signal(signal.{signal_name}, save); pathlib.Path('started').touch(); time.sleep(60)"
    )


def until(condition: Callable[[], Any], process: subprocess.Popen[Any] | None = None, seconds: float = 120) -> None:
    """Wait for what another thread or process does; fails if the process ends before, or the time is over."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, "the process has ended"
        assert time.monotonic() < deadline, f"it did not happen in {seconds} s"
        time.sleep(0.02)
