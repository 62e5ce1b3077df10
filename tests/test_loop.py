from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from llmcls.common.signals import STOP_AFTER
from llmcls.common.user_error import UserError
from llmcls.data.batches import global_batch_size, plan_epoch
from llmcls.engine.accelerator import unwrapped
from llmcls.evaluation import scoring
from llmcls.model.build import build_classifier
from llmcls.recipe import defaults
from llmcls.recipe.load import load_recipe
from llmcls.results.run_folder import RunFolder
from llmcls.train import main
from llmcls.training import loop
from llmcls.training.inputs import load_inputs
from llmcls.training.loop import collated, optimizer_step
from llmcls.training.optimizer import build_optimizer, learning_rate_factor
from llmcls.training.setup import TrainingSetup
from llmcls.training.token_budget import resolve_token_budget
from tests.model.helpers import build


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
    budget = resolve_token_budget(recipe, accelerator, model)
    split = inputs.train_split
    setup = TrainingSetup(recipe, 3, RunFolder(Path()), accelerator, inputs.labels, split, None, rows, packed, budget)
    step = next(plan_epoch(split.lengths, setup.batches, setup.seed, 0))
    with collated(setup, [step], inputs.tokenizer.pad_token_id) as steps:
        loss = optimizer_step(setup, model.train(), optimizer, *next(steps), 0) / step.rows
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


@pytest.mark.parametrize("kind, end", [("cosine", 0.0), ("linear", 0.0), ("constant", 1.0)])
def test_the_schedule_warms_up_and_ends_where_its_name_says(kind: str, end: float) -> None:
    rates = [learning_rate_factor(step, 100, 0.1, kind) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert max(rates) == pytest.approx(1.0)
    assert rates[100] == pytest.approx(end, abs=1e-9)
    assert all(np.diff(rates[10:]) <= 1e-12)


def test_eight_bit_adamw_is_used_for_four_bit_models_that_train_many_weights_and_can_be_refused(write_recipe) -> None:
    def kind(overrides: list[str], large: bool = True) -> str:
        # The optimizer creates its state at the first step, so a large layer costs one allocation that is never filled.
        layer = torch.nn.utils.skip_init(torch.nn.Linear, 10_000, 10_000 if large else 10)
        return type(build_optimizer(layer, load_recipe(path, overrides), torch.device("cpu"))).__name__

    path = write_recipe()
    assert kind(["use_4bit=true"]) == "AdamW8bit"
    assert kind(["use_4bit=true"], large=False) == "AdamW"
    assert kind(["use_4bit=true", "optim_8bit_when_4bit=false"]) == "AdamW"
    assert kind([]) == "AdamW"


def test_an_adapter_gets_the_fused_optimizer(write_recipe) -> None:
    path = write_recipe()
    optimizer = build_optimizer(build(path, "use_4bit=true"), load_recipe(path, ["use_4bit=true"]), torch.device("cpu"))
    assert type(optimizer).__name__ == "AdamW"
    assert all(group["fused"] for group in optimizer.param_groups)


def test_eight_bit_adamw_falls_back_and_says_so(write_recipe, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    import logging

    import bitsandbytes

    def no_kernel(*_: Any, **__: Any) -> None:
        raise NotImplementedError("no kernel for this device")

    monkeypatch.setattr(bitsandbytes.optim.AdamW8bit, "step", no_kernel)
    monkeypatch.setattr(defaults, "EIGHT_BIT_FROM", 0)
    logging.getLogger("llmcls").propagate = True
    recipe = load_recipe(write_recipe(), ["use_4bit=true"])
    with caplog.at_level("WARNING", logger="llmcls"):
        optimizer = build_optimizer(torch.nn.Linear(64, 64), recipe, torch.device("cpu"))
    assert type(optimizer).__name__ == "AdamW"
    assert "no kernel for this device" in caplog.text


def test_a_run_that_was_started_with_the_8_bit_optimizer_is_refused_in_a_sentence(write_recipe, monkeypatch) -> None:
    path = write_recipe(train__max_steps=4, model__use_4bit=True)
    monkeypatch.setenv(STOP_AFTER, "2")
    monkeypatch.setattr(defaults, "EIGHT_BIT_FROM", 0)
    with pytest.raises(SystemExit):
        main([str(path)])
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"saved with the optimizer AdamW8bit, .* use AdamW; "):
        main([str(path)])


def test_weight_decay_spares_vectors(write_recipe) -> None:
    recipe = load_recipe(write_recipe(train__weight_decay=0.3))
    optimizer = build_optimizer(torch.nn.Linear(4, 4), recipe, torch.device("cpu"))
    decay = {p.dim(): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decay == {2: 0.3, 1: 0.0}
