from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from llmcls.common.signals import EXIT_INTERRUPTED
from llmcls.common.user_error import UserError
from llmcls.recipe.load import load_recipe
from llmcls.results.lock import locked
from llmcls.results.run_folder import ExperimentFolder
from llmcls.training import loop
from tests.conftest import Experiment, WriteRecipe
from tests.helpers import ROOT, TOPICS, metrics_of, read_rows, refusal, train, until

pytestmark = pytest.mark.slow


def test_a_run_folder_holds_what_the_design_promises(write_recipe, products: Path) -> None:
    root = train(write_recipe(train__report_to=["tensorboard"], exp__seeds=[1, 2]))
    for i, seed in enumerate([1, 2]):
        run = root / f"run_{i}"
        for name in (
            "recipe.yaml", "environment.json", "metrics.jsonl", "metrics.json", "thresholds.json", "log.txt",
            "model/adapter_model.safetensors", "model/adapter_config.json", "model/tokenizer.json",
            "model/labels.json", "checkpoints/last/optimizer.pt", "checkpoints/best/trained.safetensors",
            "predictions_validation.jsonl", "predictions_test.jsonl", "report.html",
        ):  # fmt: skip
            assert (run / name).stat().st_size > 0, name
        assert list((run / "logs").glob("events.*"))
        assert metrics_of(run)["seed"] == seed
        rows = read_rows(products / "test.csv")
        lines = [json.loads(line) for line in (run / "predictions_test.jsonl").open(encoding="utf-8")]
        assert [line["id"] for line in lines] == [row["uid"] for row in rows]
        assert [line["true"] for line in lines] == [[t for t in TOPICS if row[t] == "1"] for row in rows]
        assert all(list(line["probabilities"]) == TOPICS for line in lines)
        assert not [p for p in run.rglob("*") if p.name.endswith((".partial", ".old"))]
    summary = json.loads((root / "summary.json").read_text(encoding="utf-8"))
    values = summary["test"]["f1_micro"]["values"]
    assert summary["test"]["f1_micro"]["mean"] == pytest.approx(sum(values) / 2)
    assert summary["test"]["f1_micro"]["std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert "seed 2" in (root / "summary.md").read_text(encoding="utf-8")


def test_the_same_seed_twice_is_identical_and_another_seed_differs(write_recipe) -> None:
    recipe = write_recipe()
    first = metrics_of(train(recipe, "exp.run_name=a") / "run_0")
    again = metrics_of(train(recipe, "exp.run_name=b") / "run_0")
    other = metrics_of(train(recipe, "exp.run_name=c", "exp.seeds=[2]") / "run_0")
    assert first == again
    assert first["test"]["loss"] != other["test"]["loss"]


def test_a_finished_run_is_kept_and_another_recipes_run_is_not_overwritten(write_recipe) -> None:
    recipe = write_recipe(train__num_train_epochs=1)
    root = train(recipe)
    before = (root / "run_0" / "metrics.json").stat().st_mtime_ns
    train(recipe)
    assert (root / "run_0" / "metrics.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"train\.learning_rate was 0\.002, is now 0\.005.*exp\.overwrite=true"):
        train(recipe, "train.learning_rate=5e-3")
    assert (root / "run_0" / "metrics.json").stat().st_mtime_ns == before
    train(recipe, "train.learning_rate=5e-3", "exp.overwrite=true")
    assert (root / "run_0" / "metrics.json").stat().st_mtime_ns != before


def test_a_run_that_died_before_it_saved_anything_does_not_block_another_recipe(write_recipe, monkeypatch) -> None:
    recipe = write_recipe(train__max_steps=2)

    def dies(*_: Any) -> None:
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "optimizer_step", dies)
        with pytest.raises(RuntimeError, match="out of luck"):
            train(recipe)
    run = train(recipe, "train.learning_rate=5e-3") / "run_0"
    assert "learning_rate: 0.005" in (run / "recipe.yaml").read_text(encoding="utf-8")
    assert metrics_of(run)["steps"] == 2


def test_a_folder_that_another_training_uses_is_left_alone(write_recipe, tmp_path: Path, capsys) -> None:
    recipe, folder = write_recipe(), tmp_path / "outputs" / "tiny-llama" / "products"
    with locked(ExperimentFolder(folder).lock, str(folder)):
        found = refusal(capsys, "train", recipe)
        assert f"{folder} is in use by process {os.getpid()} on " in found
        assert [path.name for path in folder.iterdir()] == [".lock"]


def test_a_secret_is_written_nowhere(write_recipe, tmp_path: Path, monkeypatch, capfd) -> None:
    # By recipe, command line, environment and hub cache, with every tracker, in a repository whose changes wandb reads.
    recipe = write_recipe(train__max_steps=2, train__report_to=["tensorboard", "wandb"], model__hf_token="hf_public")
    commit = ["-c", "user.name=a", "-c", "user.email=b", "commit", "-qm", "recipe"]
    for command in (["init", "-q"], ["add", "recipe.yaml"], commit):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    recipe.write_text(recipe.read_text().replace("hf_public", "hf_recipe_secret"))
    (tmp_path / "token").write_text("hf_cache_secret")
    for name, value in {
        "HF_TOKEN": "hf_environment_secret", "HF_TOKEN_PATH": str(tmp_path / "token"), "WANDB_API_KEY": "5" * 40,
        "WANDB_CACHE_DIR": str(tmp_path), "WANDB_CONFIG_DIR": str(tmp_path), "WANDB_DATA_DIR": str(tmp_path),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    for overrides in ([], ["model.hf_token=hf_command_secret", "exp.run_name=again"]):
        monkeypatch.setattr(sys, "argv", ["llmcls.train", str(recipe), *overrides])
        train(recipe, *sys.argv[2:])
    for path in (recipe, tmp_path / "token"):
        path.unlink()
    assert len(list(tmp_path.rglob("*.wandb"))) == 2
    written = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    written["the terminal"] = "".join(capfd.readouterr()).encode()
    for secret in (b"hf_recipe_secret", b"hf_command_secret", b"hf_environment_secret", b"hf_cache_secret", b"5" * 40):
        assert [name for name, content in written.items() if secret in content] == [], secret


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_run_stopped_by_a_signal_resumes_exactly(write_recipe, tmp_path: Path) -> None:
    recipe = write_recipe(train__num_train_epochs=12, train__logging_steps=1, train__lr_scheduler_type="cosine")
    command = [sys.executable, "-m", "llmcls.train", str(recipe)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "exp.run_name=whole"], env=environment, cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr
    root = tmp_path / "outputs" / "tiny-llama" / "products"
    log = root / "cut" / "run_0" / "metrics.jsonl"
    process = subprocess.Popen([*command, "exp.run_name=cut"], env=environment, cwd=tmp_path, stderr=subprocess.PIPE)
    until(lambda: log.exists() and log.read_text().count('"train"') >= 15, process)
    process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == EXIT_INTERRUPTED, errors
    assert not (root / "cut" / "run_0" / "metrics.json").exists()
    done = subprocess.run([*command, "exp.run_name=cut"], env=environment, cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"resuming after step" in done.stderr
    assert metrics_of(root / "cut" / "run_0") == metrics_of(root / "whole" / "run_0")

    def curve(name: str) -> list[tuple[int, str, float]]:
        lines = [json.loads(line) for line in (root / name / "run_0" / "metrics.jsonl").open(encoding="utf-8")]
        return [(line["step"], line["split"], line["loss"]) for line in lines if "loss" in line]

    assert curve("cut") == curve("whole")


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", EXIT_INTERRUPTED)])
def test_a_signal_before_the_first_evaluation_loses_no_step(write_recipe, monkeypatch, log_lines, name, code) -> None:
    recipe, real = write_recipe(), loop.optimizer_step

    def stopped(*arguments: Any) -> Any:
        if arguments[-1] == 2:
            os.kill(os.getpid(), getattr(signal, name))
        return real(*arguments)

    monkeypatch.setattr(loop, "optimizer_step", stopped)
    with pytest.raises(SystemExit) as stop:
        train(recipe, "exp.run_name=cut")
    assert stop.value.code == code
    assert [line for line in log_lines if f"stopped by {name} after step 3 of 20; saved" in line]
    run = ExperimentFolder.of(load_recipe(recipe, ["exp.run_name=cut"])).run(0)
    assert json.loads((run.last_checkpoint / "progress.json").read_text())["step"] == 3
    assert f"stopped by {name} after step 3" in run.log.read_text(encoding="utf-8")


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_an_interrupt_while_libraries_are_imported_is_one_line(write_recipe) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "llmcls.train", str(write_recipe())]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    # The first module of torch has been imported; many more follow.
    while " torch" not in (line := process.stderr.readline()):
        assert line
    process.send_signal(signal.SIGINT)
    lines = [line for line in process.stderr.read().splitlines() if not line.startswith("import time:")]
    assert lines[-1] == "interrupted; run the same command again to resume"
    assert not [line for line in lines if "Traceback" in line]
    assert process.wait() in (130, -signal.SIGINT)


def test_a_run_that_evaluates_nothing_ends_well(write_recipe) -> None:
    root = train(
        write_recipe(data__val_csv=None, data__test_csv=None, train__num_train_epochs=1), "train_metrics_rows=0"
    )
    assert "No split was evaluated" in (root / "run_0" / "report.html").read_text(encoding="utf-8")
    assert json.loads((root / "summary.json").read_text(encoding="utf-8"))["seeds"] == [1]
    assert (root / "run_0" / "model" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("kind", ["single_label_classification", "binary_classification"])
def test_classes_train_too(write_recipe, tmp_path: Path, kind: str) -> None:
    from tests.helpers import write_csv

    names = ["pear", "apple", "fig"][: 2 if kind.startswith("binary") else 3]
    for split, count in (("train", 90), ("validation", 30), ("test", 30)):
        rows = [
            {"uid": i, "text": f"about {names[i % len(names)]} {i % 7}", "kind": names[i % len(names)]}
            for i in range(count)
        ]
        write_csv(tmp_path / f"{split}.csv", rows)
    recipe = write_recipe(
        data__train_csv=str(tmp_path / "train.csv"), data__val_csv=str(tmp_path / "validation.csv"),
        data__test_csv=str(tmp_path / "test.csv"), data__text_fields=["text"], data__label_columns=["kind"],
        model__problem_type=kind, train__num_train_epochs=8, train__learning_rate=5e-3, model__lora_dropout=0.0,
        train__metric_for_best_model="accuracy",
    )  # fmt: skip
    root = train(recipe)
    found = metrics_of(root / "run_0")
    assert found["labels"] == sorted(names)
    assert found["test"]["accuracy"] == 1.0
    summary = (root / "summary.md").read_text(encoding="utf-8")
    assert ("f1_positive" in summary) == kind.startswith("binary")
    report = (root / "run_0" / "report.html").read_text(encoding="utf-8")
    result = report.partition('id="result"')[2].partition('id="training"')[0]
    assert "accuracy" in result
    assert ("of the positive class" in result) == kind.startswith("binary")
    assert next(iter(found["test"]["intervals"])) == ("f1_positive" if kind.startswith("binary") else "f1_micro")


def test_the_model_is_loaded_where_its_engine_wants_it(write_recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmcls import train as command

    class Loaded(Exception):
        pass

    def build(recipe, labels, device, loading_device, dtype):
        raise Loaded(f"{loading_device}, {dtype}")

    monkeypatch.setattr(command, "loading_device", lambda _: "main memory")
    monkeypatch.setattr(command, "build_classifier", build)
    with pytest.raises(Loaded, match="main memory, None"):
        train(write_recipe())
    # As accel_configs/laptop_4bit.yaml does with a float32 recipe.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(Loaded, match=r"main memory, torch\.bfloat16"):
        train(write_recipe())


def test_the_main_process_decides_whether_a_run_is_finished(trained: Experiment, monkeypatch) -> None:
    from llmcls import train as command

    started: list[int] = []
    monkeypatch.setattr(command, "train_one_seed", lambda recipe, seed, *_: started.append(seed))
    monkeypatch.setattr(command, "from_main", lambda accelerator, own: not own)
    train(trained.recipe)
    assert started == [1, 2], "this rank sees finished runs, the main process does not"


def test_an_operation_that_is_not_deterministic_is_one_sentence(write_recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmcls import train as command

    def seeds(*_):
        # As torch does in an operation of which it has no deterministic version.
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))

    monkeypatch.setattr(command, "train_seeds", seeds)
    with pytest.raises(UserError, match=r"train\.deterministic is true, but put_ does not have a deterministic impl"):
        train(write_recipe(train__deterministic=True))
    train(write_recipe(train__deterministic=False))


def test_the_model_of_a_seed_is_gone_before_the_next_one_is_built(
    write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU that one model fills, two do not fit."""
    from llmcls import train as command

    built: list[weakref.ref[Any]] = []
    alive: list[bool] = []
    real = command.build_classifier

    def watched(*arguments: Any) -> Any:
        alive.extend(model() is not None for model in built)
        found = real(*arguments)
        built.append(weakref.ref(found.sequence_classifier.base_model.layers[0].mlp))
        return found

    monkeypatch.setattr(command, "build_classifier", watched)
    # What is freed now and then is not freed in time.
    gc.disable()
    try:
        train(write_recipe(exp__seeds=[1, 2], train__max_steps=1))
    finally:
        gc.enable()
    assert alive == [False]
