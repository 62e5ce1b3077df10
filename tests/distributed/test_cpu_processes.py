"""Real processes on the cpu profile, started as a user starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llmcls.common.user_error import UserError
from llmcls.engine.accelerator import open_accelerator
from llmcls.recipe.load import load_recipe
from tests.helpers import ROOT, predict, train

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def launch(processes: int, module: str, *arguments: str, profile: str = "cpu") -> subprocess.CompletedProcess[str]:
    """``accelerate launch --config_file accel_configs/PROFILE.yaml --num_processes N -m MODULE ...``"""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"accel_configs/{profile}.yaml"]
    command += ["--num_processes", str(processes), "-m", module, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture
def runs(write_recipe, tmp_path: Path) -> dict[int, Path]:
    """The same recipe trained by this process and by two, with as many samples an optimizer step."""
    recipe = write_recipe(model__lora_dropout=0.0, train__batch_size=3, train__num_train_epochs=2)
    train(recipe, "exp.run_name=on1", "gradient_accumulation_steps=4")
    done = launch(2, "llmcls.train", str(recipe), "exp.run_name=on2", "gradient_accumulation_steps=2")
    assert done.returncode == 0, done.stderr
    return {n: tmp_path / "outputs" / "tiny-llama" / "products" / f"on{n}" / "run_0" for n in (1, 2)}


def test_two_processes_train_as_one_does_and_predict_the_same(runs: dict[int, Path], products: Path, tmp_path) -> None:
    engines = [json.loads((runs[n] / "environment.json").read_text()) for n in (1, 2)]
    assert [e["processes"] for e in engines] == [1, 2]
    lines = [[json.loads(line) for line in (runs[n] / "metrics.jsonl").open(encoding="utf-8")] for n in (1, 2)]
    curves = [[(x["step"], x["split"], x["loss"]) for x in of_run if "loss" in x] for of_run in lines]
    assert [c[:2] for c in curves[0]] == [c[:2] for c in curves[1]]
    assert [c[2] for c in curves[0]] == pytest.approx([c[2] for c in curves[1]], rel=1e-4)

    outputs = {}
    for processes in (1, 2):
        output = tmp_path / f"by{processes}.jsonl"
        inputs = ["--run", str(runs[1]), "--input", str(products / "test.csv"), "--output", str(output)]
        if processes == 1:
            predict(*inputs)
        else:
            done = launch(processes, "llmcls.predict", *inputs)
            assert done.returncode == 0, done.stderr
        outputs[processes] = [json.loads(line) for line in output.open()]
    assert len(outputs[1]) == 61
    assert [o["id"] for o in outputs[1]] == [o["id"] for o in outputs[2]]
    for one, two in zip(outputs[1], outputs[2], strict=True):
        assert one["labels"] == two["labels"]
        assert list(one["probabilities"].values()) == pytest.approx(list(two["probabilities"].values()), abs=1e-6)


def test_processes_that_do_not_form_a_group_are_stopped(write_recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a machine whose GPUs this process cannot use: accelerate then makes every process its own group.
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="the launcher started 2 processes, but the process group has 1"):
        open_accelerator(load_recipe(write_recipe()))


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the engine engages")
def test_a_sharded_profile_without_gpus_is_refused_once_and_writes_nothing(write_recipe, tmp_path: Path) -> None:
    done = launch(2, "llmcls.train", str(write_recipe()), profile="fsdp_qlora")
    assert done.returncode != 0
    sentence = "error: the profile asks for FSDP in 2 process(es), but no GPU is visible"
    # The block of the launcher repeats it, behind a word of its own.
    assert len([line for line in done.stderr.splitlines() if line.startswith(sentence)]) == 1
    assert "llmcls.rehearse" in done.stderr
    assert not (tmp_path / "outputs").exists()


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ranks_whose_launcher_was_killed_save_the_current_step_and_end(write_recipe, tmp_path: Path) -> None:
    recipe = write_recipe(train__num_train_epochs=500, train__eval_steps=4000, train__save_minutes=0)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accel_configs/cpu.yaml"]
    command += ["--num_processes", "2", "-m", "llmcls.train", str(recipe)]
    launcher = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert launcher.stderr is not None
    lines = []
    for line in launcher.stderr:
        lines.append(line)
        if "step 4/" in line:
            launcher.kill()
    # The pipe ends when the ranks, which inherited it, have ended.
    launcher.wait()
    saved = json.loads((tmp_path / "outputs/tiny-llama/products/run_0/checkpoints/last/progress.json").read_text())
    assert saved["step"] >= 4, "".join(lines)
    assert any(f"after step {saved['step']} of 2500; saved" in line for line in lines)
    assert not (tmp_path / "outputs/tiny-llama/products/.lock").exists()
