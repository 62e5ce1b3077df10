from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from llmcls.common.signals import STOP_AFTER
from llmcls.data.batches import plan_epoch
from llmcls.data.steps import global_batch_size
from llmcls.engine.accelerator import unwrapped
from llmcls.evaluation import scoring
from llmcls.model.build import build_classifier
from llmcls.recipe.load import load_recipe
from llmcls.results.run_folder import RunFolder
from llmcls.train import main
from llmcls.training import interval, loop
from llmcls.training.inputs import load_inputs
from llmcls.training.loop import collated, optimizer_step
from llmcls.training.optimizer import build_optimizer
from llmcls.training.setup import TrainingSetup
from llmcls.training.token_budget import resolve_token_budget

pytestmark = pytest.mark.slow


def one_step(recipe_path: Path, overrides: list[str]) -> tuple[dict[str, torch.Tensor], float]:
    """The trained weights after one optimizer step, and its mean loss."""
    AcceleratorState._reset_state(reset_partial_state=True)
    recipe = load_recipe(recipe_path, overrides)
    accelerator = Accelerator(cpu=True)
    inputs = load_inputs(recipe, accelerator)
    torch.manual_seed(3)
    model = build_classifier(recipe, inputs.labels, accelerator.device)
    optimizer = build_optimizer(model, recipe, accelerator.device)
    model, optimizer = accelerator.prepare(model, optimizer)
    rows, packed = global_batch_size(recipe, 1), unwrapped(model).packs
    budget = resolve_token_budget(recipe, accelerator, model, inputs.labels)
    split = inputs.train_split
    setup = TrainingSetup(recipe, 3, RunFolder(Path()), accelerator, inputs.labels, split, None, rows, packed, budget)
    step = next(plan_epoch(split.lengths, setup.batches, setup.seed, 0))
    with collated(setup, [step], inputs.tokenizer.pad_token_id) as steps:
        loss = optimizer_step(setup, model.train(), optimizer, *next(steps), 0).loss_sum / step.rows
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}, float(loss)


@pytest.mark.parametrize(
    "other",
    [
        ["batch_size=32", "gradient_accumulation_steps=1"],
        ["batch_size=4", "gradient_accumulation_steps=8", "micro_batch_tokens=300"],
        ["batch_size=1", "gradient_accumulation_steps=32"],
        ["batch_size=4", "gradient_accumulation_steps=8", "packing=false"],
        ["batch_size=1", "gradient_accumulation_steps=32", "packing=false"],
        ["batch_size=4", "gradient_accumulation_steps=8", "gradient_checkpointing=true"],
    ],
    ids=lambda o: ",".join(o),
)
def test_a_step_is_the_same_however_it_is_cut_into_micro_batches(write_recipe, other: list[str]) -> None:
    # SGD-like sensitivity: AdamW's first step is the sign of the gradient, so weight decay and clipping stay on
    # while the learning rate is small enough that rounding cannot flip a sign unseen.
    path = write_recipe(model__lora_dropout=0.0, train__learning_rate=1e-3, train__warmup_ratio=0.0)
    expected, loss = one_step(path, ["batch_size=4", "gradient_accumulation_steps=8"])
    found, other_loss = one_step(path, other)
    assert other_loss == pytest.approx(loss, rel=1e-6)
    for name, weight in expected.items():
        assert torch.allclose(found[name], weight, rtol=0, atol=1e-6), name


def test_the_last_short_step_of_an_epoch_is_the_mean_over_what_it_holds(write_recipe) -> None:
    path = write_recipe(model__lora_dropout=0.0)
    _, small = one_step(path, ["batch_size=200", "gradient_accumulation_steps=1"])
    _, again = one_step(path, ["batch_size=7", "gradient_accumulation_steps=40"])
    assert again == pytest.approx(small, rel=1e-6)


def test_weights_of_classes_make_the_loss_of_a_step_a_weighted_mean(write_recipe) -> None:
    path = write_recipe(
        model__lora_dropout=0.0, data__label_columns=["books"], model__problem_type="binary_classification"
    )
    one, cut = ["batch_size=32", "gradient_accumulation_steps=1"], ["batch_size=4", "gradient_accumulation_steps=8"]
    weights, loss = one_step(path, [*one, "pos_weight={books: 4}"])
    found, other = one_step(path, [*cut, "pos_weight={books: 4}"])
    assert other == pytest.approx(loss, rel=1e-6)
    for name, weight in weights.items():
        assert torch.allclose(found[name], weight, rtol=0, atol=1e-6), name
    _, plain = one_step(path, cut)
    _, all_alike = one_step(path, [*cut, "pos_weight={books: 4, not_books: 4}"])
    assert all_alike == pytest.approx(plain, rel=1e-6)
    assert abs(loss - plain) > 1e-3


def test_batches_that_a_thread_prepares_ahead_are_the_same(write_recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_recipe(model__lora_dropout=0.3, train__max_steps=5, train__logging_steps=1)

    def trained(depth: int) -> list[float]:
        for module in (loop, scoring):
            monkeypatch.setattr(module, "depth_for", lambda _: depth)
        main([str(path), f"exp.run_name=depth-{depth}"])
        lines = (
            path.parent / "outputs" / "tiny-llama" / "products" / f"depth-{depth}" / "run_0" / "metrics.jsonl"
        ).open()
        return [line["loss"] for line in map(json.loads, lines) if "loss" in line]

    here, ahead_of_it = trained(0), trained(2)
    assert len(here) >= 6
    assert here == ahead_of_it
    assert not [t for t in threading.enumerate() if t.name == "llmcls-batches"]


def test_a_stop_ends_the_thread_and_the_run_resumes_exactly(write_recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_recipe(model__lora_dropout=0.3, train__max_steps=6, train__logging_steps=1)
    monkeypatch.setattr(loop, "depth_for", lambda _: 2)

    def losses(name: str) -> list[float]:
        lines = (path.parent / "outputs" / "tiny-llama" / "products" / name / "run_0" / "metrics.jsonl").open()
        return [line["loss"] for line in map(json.loads, lines) if "loss" in line]

    main([str(path), "exp.run_name=whole"])
    monkeypatch.setenv(STOP_AFTER, "3")
    with pytest.raises(SystemExit):
        main([str(path), "exp.run_name=stopped"])
    assert not [t for t in threading.enumerate() if t.name == "llmcls-batches"]
    monkeypatch.delenv(STOP_AFTER)
    main([str(path), "exp.run_name=stopped"])
    assert losses("stopped") == losses("whole")


def test_ranks_are_asked_for_a_signal_every_few_steps_only(write_recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each question makes all ranks wait for each other and for the device.
    path = write_recipe(train__max_steps=9, train__logging_steps=2, train__train_metrics_rows=0)
    monkeypatch.setattr(interval, "SECONDS_BETWEEN_SIGNALS", 1e6)
    asked = []
    monkeypatch.setattr(loop, "any_rank", lambda accelerator, *flags: asked.append(flags) or flags)
    main([str(path)])
    # Until the first log line nobody knows how long a step takes; then only before the last evaluation.
    assert asked == [(False, False)] * 3
