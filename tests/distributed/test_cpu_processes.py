"""Real processes on the cpu profile, started as a user starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


def launch(processes: int, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``accelerate launch --config_file accel_configs/cpu.yaml --num_processes N -m MODULE ...``"""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accel_configs/cpu.yaml"]
    command += ["--num_processes", str(processes), "-m", module, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture
def runs(write_recipe, tmp_path: Path) -> dict[int, Path]:
    """The same recipe trained by one and by two processes, with as many samples an optimizer step."""
    recipe = write_recipe(model__lora_dropout=0.0, train__batch_size=3, train__num_train_epochs=2)
    folders = {}
    for processes in (1, 2):
        name = f"exp.run_name=on{processes}"
        done = launch(processes, "llmcls.train", str(recipe), name, f"gradient_accumulation_steps={4 // processes}")
        assert done.returncode == 0, done.stderr
        folders[processes] = tmp_path / "outputs" / "tiny-llama" / "products" / f"on{processes}" / "run_0"
    return folders


def test_two_processes_train_as_one_does_and_predict_the_same(runs: dict[int, Path], products: Path, tmp_path) -> None:
    engines = [json.loads((runs[n] / "environment.json").read_text()) for n in (1, 2)]
    assert [e["processes"] for e in engines] == [1, 2]
    curves = [
        [(line["step"], line["split"], line["loss"]) for line in map(json.loads, (runs[n] / "metrics.jsonl").open())]
        for n in (1, 2)
    ]
    assert [c[:2] for c in curves[0]] == [c[:2] for c in curves[1]]
    assert [c[2] for c in curves[0]] == pytest.approx([c[2] for c in curves[1]], rel=1e-4)

    outputs = {}
    for processes in (1, 2):
        output = tmp_path / f"by{processes}.jsonl"
        inputs = ["--run", str(runs[1]), "--input", str(products / "test.csv"), "--output", str(output)]
        done = launch(processes, "llmcls.predict", *inputs)
        assert done.returncode == 0, done.stderr
        outputs[processes] = [json.loads(line) for line in output.open()]
    assert len(outputs[1]) == 61
    assert [o["id"] for o in outputs[1]] == [o["id"] for o in outputs[2]]
    for one, two in zip(outputs[1], outputs[2], strict=True):
        assert one["labels"] == two["labels"]
        assert list(one["probabilities"].values()) == pytest.approx(list(two["probabilities"].values()), abs=1e-6)


def test_processes_that_do_not_form_a_group_are_stopped(write_recipe, tmp_path: Path) -> None:
    environment = os.environ | {"WORLD_SIZE": "2", "RANK": "0"}
    command = [sys.executable, "-m", "llmcls.train", str(write_recipe())]
    environment.pop("LOCAL_RANK", None)
    done = subprocess.run(
        command, cwd=ROOT, env=environment | {"ACCELERATE_USE_FSDP": "true"}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "the launcher started 2 processes" in done.stderr
    assert not (tmp_path / "outputs").exists()
