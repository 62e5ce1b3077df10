from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import llmcls.train
from llmcls.common.user_error import UserError
from llmcls.train import main
from llmcls.training import finite
from llmcls.training.checkpoints import Progress
from llmcls.training.finite import GradientWatch
from tests.helpers import metrics_of

pytestmark = pytest.mark.slow


@pytest.fixture
def broken_word(write_recipe, products: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A recipe, and the ids of the training rows with a token whose embedding is not a number."""
    splits = {}

    def build(recipe: Any, labels: Any, *placement: Any) -> Any:
        network = real_build(recipe, labels, *placement)
        network.model.get_input_embeddings().weight.data[splits["token"]] = float("nan")
        return network

    def load(*arguments: Any) -> Any:
        inputs = real_load(*arguments)
        seen = {t for s in (inputs.validation_split, inputs.test_split) for row in s.tokens for t in row.tolist()}
        train = inputs.train_split
        rows = Counter(t for row in train.tokens for t in set(row.tolist()))
        splits["token"] = min((t for t in rows if t not in seen), key=lambda t: (rows[t], t))
        splits["ids"] = [train.table[i]["id"] for i, row in enumerate(train.tokens) if splits["token"] in row.tolist()]
        return inputs

    real_build, real_load = llmcls.train.build_classifier, llmcls.train.load_inputs
    monkeypatch.setattr(llmcls.train, "build_classifier", build)
    monkeypatch.setattr(llmcls.train, "load_inputs", load)
    return splits


def test_a_row_without_a_loss_is_named_and_its_step_left_out(write_recipe, broken_word, log_lines, tmp_path) -> None:
    recipe = write_recipe(train__num_train_epochs=1, train__train_metrics_rows=0, train__logging_steps=1)
    main([str(recipe)])
    found = [line for line in log_lines if "is left out" in line]
    assert 1 <= len(found) <= len(broken_word["ids"])
    for row in broken_word["ids"]:
        assert any(f"'{row}'" in line.partition("; ")[2] for line in found), row
    run = tmp_path / "outputs/tiny-llama/products/run_0"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open(encoding="utf-8")]
    train = [line for line in lines if line["split"] == "train"]
    # A line for each step that counted, and each has numbers.
    assert len(train) == 10 - len(found)
    assert all(np.isfinite([line["loss"], line["gradient_norm"]]).all() for line in train)
    assert all(np.isfinite(v) for v in metrics_of(run)["validation"].values() if isinstance(v, float))
    progress = json.loads((run / "checkpoints/last/progress.json").read_text())
    assert progress["skipped_steps"] == len(found)


def test_too_many_end_the_run_with_advice_that_fits(write_recipe, broken_word) -> None:
    recipe = write_recipe(train__num_train_epochs=1, train__max_skipped_steps=0, train__max_grad_norm=0.0)
    with pytest.raises(UserError) as stop:
        main([str(recipe)])
    sentence = str(stop.value)
    assert "the gradient was not a number in 1 steps, last in step" in sentence
    assert any(f"'{row}'" in sentence for row in broken_word["ids"])
    assert sentence.endswith("; lower train.learning_rate (0.002), or set train.max_grad_norm=1")
    assert len(sentence) < 300


def test_a_resumed_run_leaves_out_the_same_steps(write_recipe, broken_word, monkeypatch, tmp_path) -> None:
    recipe = write_recipe(train__num_train_epochs=1, train__train_metrics_rows=0)
    main([str(recipe), "exp.run_name=whole"])
    monkeypatch.setenv("LLMCLS_STOP_AFTER", "5")
    with pytest.raises(SystemExit):
        main([str(recipe), "exp.run_name=cut"])
    monkeypatch.delenv("LLMCLS_STOP_AFTER")
    main([str(recipe), "exp.run_name=cut"])
    root = tmp_path / "outputs/tiny-llama/products"
    assert metrics_of(root / "cut/run_0") == metrics_of(root / "whole/run_0")


class Interval:
    """Notes the norms."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def note_norm(self, norm: float) -> None:
        self.norms.append(norm)


def test_a_spike_of_the_gradient_is_logged(write_recipe, log_lines, tmp_path) -> None:
    from llmcls.recipe.load import load_recipe

    class Setup:
        recipe = load_recipe(write_recipe())

    progress, interval = Progress(seed=1, global_batch_size=8), Interval()
    watch = GradientWatch(Setup(), progress, interval)
    norms = [1.0] * 25 + [30.0] + [1.0] * 5
    for number, norm in enumerate(norms, start=1):
        watch.add(number, None, finite.Taken(torch.zeros(()), torch.tensor(norm), []))
    assert [line for line in log_lines if "norm" in line] == [
        "step 26: the norm of the gradient is 30, 30 times the usual 1; it is clipped to 1.0"
    ]
    assert interval.norms == norms
    assert 1.0 < progress.usual_norm < 1.5


def test_fused_adamw_leaves_out_a_step_on_the_device() -> None:
    # What a GPU is told; the kernel on a CPU understands it, too.
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer: Any = torch.optim.AdamW([weight], lr=0.1, fused=True)
    for norm in (1.0, float("nan"), 1.0):
        weight.grad = torch.full((4,), norm)
        optimizer.found_inf = (~torch.isfinite(torch.tensor(norm))).float()
        before = weight.detach().clone()
        optimizer.step()
        assert bool((weight == before).all()) == (norm != norm)
    assert float(optimizer.state[weight]["step"]) == 2
