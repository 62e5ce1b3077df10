from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from llmcls.common.files import write_json
from llmcls.common.signals import STOP_AFTER
from llmcls.common.user_error import UserError
from llmcls.model.pretrained import load_tokenizer
from llmcls.recipe import defaults
from llmcls.recipe.load import load_recipe
from llmcls.results.run_folder import RunFolder
from llmcls.train import main
from llmcls.training import best_checkpoints, checkpoints
from llmcls.training.best_checkpoints import WEIGHTS, load_best, save_best
from llmcls.training.checkpoints import Progress, load_last, read_progress, save_last, save_model
from tests.common.test_manifest import DAMAGES
from tests.helpers import metrics_of, train
from tests.model.helpers import LABELS, TEXTS, build, lengths_of, packed_row

pytestmark = pytest.mark.slow


def test_a_run_that_was_started_with_the_8_bit_optimizer_is_refused_in_a_sentence(write_recipe, monkeypatch) -> None:
    path = write_recipe(train__max_steps=4, model__use_4bit=True)
    monkeypatch.setenv(STOP_AFTER, "2")
    monkeypatch.setattr(defaults, "EIGHT_BIT_FROM", 0)
    with pytest.raises(SystemExit):
        main([str(path)])
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"saved with the optimizer AdamW8bit, .* use AdamW; "):
        main([str(path)])


def test_the_best_model_is_kept_and_training_stops_early(write_recipe) -> None:
    recipe = write_recipe(
        train__num_train_epochs=30, train__learning_rate=3e-2, train__early_stopping_patience=1,
        train__metric_for_best_model="loss", train__save_total_limit=2,
    )  # fmt: skip
    run = train(recipe) / "run_0"
    history = json.loads((run / "checkpoints/last/progress.json").read_text(encoding="utf-8"))["history"]
    losses = [h["validation"]["loss"] for h in history]
    found = metrics_of(run)
    assert len(losses) < 30
    assert losses[-1] >= min(losses)
    assert found["validation"]["loss"] == pytest.approx(min(losses), rel=1e-6)
    assert found["best_step"] == history[losses.index(min(losses))]["step"]
    assert (run / "checkpoints/best_2").exists() == (losses.index(min(losses)) > 0)


def head_of(model: torch.nn.Module) -> torch.Tensor:
    """The trained weight of the classification head."""
    return next(p for n, p in model.named_parameters() if p.requires_grad and "score" in n)


def test_a_checkpoint_restores_weights_optimizer_and_progress(write_recipe, tmp_path: Path) -> None:
    run, accelerator, recipe = RunFolder(tmp_path), Accelerator(cpu=True), write_recipe(model__lora_dropout=0.0)

    def step(model: Any, optimizer: Any) -> None:
        model(packed_row(TEXTS), lengths_of(TEXTS)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    def new() -> tuple[Any, Any]:
        model = build(recipe)
        return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)

    model, optimizer = new()
    assert load_last(run, accelerator, model, optimizer) is None
    step(model, optimizer)
    save_last(run, accelerator, model, optimizer, Progress(seed=7, global_batch_size=16, step=1, tokens=99))
    other, again = new()
    assert not torch.equal(head_of(model), head_of(other))
    progress = load_last(run, accelerator, other, again)
    assert progress == Progress(seed=7, global_batch_size=16, step=1, tokens=99)
    step(model, optimizer)
    step(other, again)
    assert torch.equal(head_of(model), head_of(other))


@pytest.fixture
def saved_twice(write_recipe, tmp_path: Path) -> tuple[RunFolder, Accelerator, Any, Any]:
    """A run with the checkpoints of steps 1 and 2, of which the first was the best, a model and its optimizer."""
    run, accelerator, model = RunFolder(tmp_path / "run_0"), Accelerator(cpu=True), build(write_recipe())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in (1, 2):
        torch.nn.init.constant_(head_of(model), step)
        if step == 1:
            save_best(run, accelerator, model, keep=1, step=step)
        progress = Progress(seed=7, global_batch_size=16, step=step, best_step=1, best_value=0.5)
        save_last(run, accelerator, model, optimizer, progress)
    return run, accelerator, model, optimizer


def test_every_damage_of_the_last_checkpoint_is_named_and_the_one_before_used(saved_twice, tmp_path, log_lines) -> None:
    run, *others = saved_twice
    names = sorted(path.name for path in run.last_checkpoint.iterdir())
    assert names == ["manifest.json", "optimizer.pt", "progress.json", "trained.safetensors"]
    shutil.copytree(run.path, tmp_path / "whole")
    for name in names:
        for kind, change in DAMAGES.items():
            shutil.rmtree(run.path)
            shutil.copytree(tmp_path / "whole", run.path)
            log_lines.clear()
            change(run.last_checkpoint / name)
            progress = load_last(run, *others)
            assert progress is not None
            assert progress.step == 1, (name, kind)
            assert float(head_of(others[1])[0, 0].detach()) == 1.0
            assert len(log_lines) == 1
            assert re.search(rf"last is damaged \(.*{re.escape(name)}", log_lines[0]), log_lines
            assert sorted(p.name for p in run.last_checkpoint.parent.iterdir()) == ["best", "last.damaged", "previous"]


def test_a_run_without_an_intact_checkpoint_stops_and_does_not_start_again(saved_twice) -> None:
    run, *others = saved_twice
    for folder in (run.last_checkpoint, run.previous_checkpoint):
        os.truncate(folder / "optimizer.pt", 10)
    for _ in range(2):
        with pytest.raises(UserError, match=r"last is damaged: optimizer\.pt has 10 bytes instead of \d+; no other is"):
            load_last(run, *others)


def test_a_kill_between_the_two_renames_loses_one_checkpoint_only(saved_twice) -> None:
    run, *others = saved_twice
    shutil.rmtree(run.previous_checkpoint)
    os.replace(run.last_checkpoint, run.previous_checkpoint)
    progress = load_last(run, *others)
    assert progress is not None
    assert progress.step == 2


def test_damaged_weights_of_the_best_evaluation_stop_a_resume(saved_twice) -> None:
    run, *others = saved_twice
    DAMAGES["middle"](run.best_checkpoint() / WEIGHTS)
    with pytest.raises(UserError, match=r"best is damaged: trained\.safetensors has another content"):
        load_last(run, *others)
    with pytest.raises(UserError, match=r"best is damaged: trained\.safetensors has another content"):
        load_best(run, *others[:2])


def test_weights_of_the_best_evaluation_that_the_checkpoint_has_too_are_written_again(saved_twice, log_lines) -> None:
    run, accelerator, model, optimizer = saved_twice
    save_last(run, accelerator, model, optimizer, Progress(seed=7, global_batch_size=16, step=3, best_step=3))
    shutil.rmtree(run.best_checkpoint())
    load_last(run, accelerator, model, optimizer)
    assert [line for line in log_lines if "it is written again from" in line]
    torch.nn.init.zeros_(head_of(model))
    load_best(run, accelerator, model)
    assert float(head_of(model)[0, 0].detach()) == 2.0


def test_a_run_whose_last_checkpoint_is_damaged_comes_to_the_same_result(write_recipe, monkeypatch) -> None:
    recipe = write_recipe(train__num_train_epochs=1, train__eval_steps=2)
    expected = metrics_of(train(recipe, "exp.run_name=whole") / "run_0")
    monkeypatch.setenv(STOP_AFTER, "6")
    with pytest.raises(SystemExit):
        main([str(recipe), "exp.run_name=cut"])
    monkeypatch.delenv(STOP_AFTER)
    run = RunFolder(Path(load_recipe(recipe).exp.output_root) / "tiny-llama" / "products" / "cut" / "run_0")
    DAMAGES["middle"](run.last_checkpoint / WEIGHTS)
    train(recipe, "exp.run_name=cut")
    assert metrics_of(run.path) == expected
    assert not run.previous_checkpoint.exists()


def test_a_full_disk_keeps_the_last_checkpoint_and_is_one_sentence(saved_twice, monkeypatch, tmp_path: Path) -> None:
    run, accelerator, model, optimizer = saved_twice
    progress = Progress(seed=7, global_batch_size=16, step=3, best_step=1)

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", full)
        with pytest.raises(UserError, match="last: the disk is full; free some space; the same command then resumes"):
            save_last(run, accelerator, model, optimizer, progress)
    assert "last.partial" not in [path.name for path in run.last_checkpoint.parent.iterdir()]
    found = load_last(run, accelerator, model, optimizer)
    assert found is not None
    assert found.step == 2


def test_a_checkpoint_of_another_version_is_one_sentence(tmp_path: Path) -> None:
    write_json(tmp_path / "progress.json", {"seed": 1, "global_batch_size": 2, "speed_of_light": 3})
    with pytest.raises(UserError, match="was written by another version of llmcls; resume with that version"):
        read_progress(tmp_path)


@pytest.fixture
def on_a_blind_rank(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make this process a rank that the main process tells what it sees itself."""

    def told(*by_main: Any) -> None:
        answers = list(by_main)
        for module in (checkpoints, best_checkpoints):
            for name in ("from_main", "on_main"):
                monkeypatch.setattr(module, name, lambda accelerator, own: answers.pop(0))

    return told


def test_a_rank_that_does_not_see_the_best_model_names_its_machine(write_recipe, tmp_path, on_a_blind_rank) -> None:
    run = RunFolder(tmp_path)
    on_a_blind_rank(run.best_checkpoint(), "3")
    with pytest.raises(UserError, match="does not see there what the main process sees"):
        load_best(run, Accelerator(cpu=True), build(write_recipe()))


def test_a_rank_that_sees_an_older_checkpoint_names_its_machine(write_recipe, tmp_path: Path, on_a_blind_rank) -> None:
    run, accelerator, model = RunFolder(tmp_path), Accelerator(cpu=True), build(write_recipe())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    save_last(run, accelerator, model, optimizer, Progress(seed=7, global_batch_size=16, step=1))
    on_a_blind_rank(run.last_checkpoint, Progress(seed=7, global_batch_size=16, step=2))
    with pytest.raises(UserError, match="does not see there what the main process sees"):
        load_last(run, accelerator, model, optimizer)


def test_a_rank_starts_anew_if_only_it_sees_a_checkpoint(write_recipe, tmp_path: Path, on_a_blind_rank) -> None:
    # A node's own disk can hold the checkpoint of an earlier training.
    run, accelerator, model = RunFolder(tmp_path), Accelerator(cpu=True), build(write_recipe())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    save_last(run, accelerator, model, optimizer, Progress(seed=7, global_batch_size=16, step=1))
    on_a_blind_rank(None)
    assert load_last(run, accelerator, model, optimizer) is None


def test_any_order_of_modules_is_written_sorted(tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.json"
    write_json(path, {"target_modules": ["v", "q", "k"], "rank_pattern": {}, "exclude_modules": None})
    checkpoints._sort_modules(path)
    assert json.loads(path.read_text()) == {
        "target_modules": ["k", "q", "v"], "rank_pattern": {}, "exclude_modules": None
    }  # fmt: skip


def test_a_saved_adapter_names_its_modules_in_order(write_recipe, tmp_path: Path) -> None:
    recipe, accelerator, model = load_recipe(write_recipe()), Accelerator(cpu=True), build(write_recipe())
    # peft keeps them in a set, whose order depends on the process; this is one that it may have.
    model.model.peft_config["default"].target_modules = ["v_proj", "q_proj"]
    save_model(RunFolder(tmp_path), accelerator, model, load_tokenizer(recipe.model), LABELS, recipe)
    config = json.loads((tmp_path / "model" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "v_proj"]


def test_a_tokenizer_is_saved_as_it_was_loaded_whether_it_has_read_texts_or_not(write_recipe, trained_once) -> None:
    found = json.loads((trained_once.runs[0] / "model" / "tokenizer.json").read_text(encoding="utf-8"))
    assert found["truncation"] is None
    assert found["padding"] is None
