"""A training step of packed texts on a GPU: the host never waits for it, and no new size compiles again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmcls.data.batches import Batch, Step, collate, plan_step
from llmcls.data.splits import Split
from llmcls.engine.accelerator import open_accelerator, prepare
from llmcls.model.build import build_classifier
from llmcls.recipe.schema import DataSection, ExpSection, ModelSection, Recipe, TrainSection
from llmcls.results.run_folder import RunFolder
from llmcls.training.loop import optimizer_step
from llmcls.training.optimizer import build_optimizer
from llmcls.training.setup import TrainingSetup
from tests.cuda import DEVICE, NEEDS_GPU
from tests.cuda.helpers import compiled_kernels, no_waiting, write_model
from tests.helpers import fresh_accelerator
from tests.model.helpers import LABELS

pytestmark = NEEDS_GPU

SIZES = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64,
}  # fmt: skip
ROWS = 64
# Rows of optimizer steps: those before the watch begins, one of them with a single text in a micro-batch, and after.
WARM_UP = [range(0, 1), range(1, 9), range(9, 25)]
WATCHED = [range(25, 26), range(26, 33), range(33, 64)]


@pytest.fixture(autouse=True)
def _precision_of_its_own() -> Iterator[None]:
    yield
    fresh_accelerator()


class Training:
    """A classifier of an architecture on the GPU, before its first step."""

    def __init__(self, folder: Path, kind: str, model: dict[str, Any], train: dict[str, Any]) -> None:
        name = write_model(folder / "model", kind, **SIZES)
        adapter = {"lora_r": 4, "lora_dropout": 0.05, "lora_target_modules": ["all-linear"]}
        recipe = Recipe(
            DataSection("d", "train.csv", LABELS.columns, max_length=64), ModelSection(name, **(adapter | model)),
            TrainSection(report_to=[], **train), ExpSection(str(folder)),
        )  # fmt: skip
        accelerator = open_accelerator(recipe)
        torch.manual_seed(0)
        classifier = build_classifier(recipe, LABELS, accelerator.device)
        assert classifier.packs
        self.model, self.optimizer = prepare(
            accelerator, classifier, build_optimizer(classifier, recipe, accelerator.device)
        )
        self.model.train()
        rng = np.random.default_rng(0)
        lengths = rng.integers(1, 64, ROWS).astype(np.int32)
        tokens = [rng.integers(1, 300, length, dtype=np.int32) for length in lengths]
        labels = (rng.random((ROWS, len(LABELS.names))) < 0.3).astype(np.float32)
        split = Split("train", "random", tokens, lengths, labels, None)
        # Several micro-batches of a step.
        self.setup = TrainingSetup(recipe, 0, RunFolder(folder), accelerator, LABELS, split, None, ROWS, True, 256)
        self.taken = 0

    def batches(self, rows: range) -> tuple[Step, list[Batch]]:
        """The micro-batches of these rows, in pinned memory."""
        split = self.setup.train_split
        step = plan_step(np.array(rows), split.lengths, self.setup.batches)
        return step, [collate(split, own, 0, True).pinned(DEVICE) for own in step.micro_batches[0]]

    def run(self, steps: list[range], watch: Callable[[], AbstractContextManager[None]] = nullcontext) -> float:
        """Take optimizer steps; returns the sum of their losses."""
        prepared, losses = [self.batches(rows) for rows in steps], []
        with watch():
            for step, batches in prepared:
                losses.append(optimizer_step(self.setup, self.model, self.optimizer, step, batches, self.taken))
                self.taken += 1
        return sum(float(taken.loss_sum) for taken in losses)


@pytest.mark.parametrize(
    "kind, model, train",
    [
        ("llama", {}, {}),
        ("gemma3_text", {}, {}),
        ("qwen3", {}, {}),
        ("llama", {"lora_r": 0}, {}),
        ("llama", {}, {"gradient_checkpointing": True}),
        ("llama", {"use_4bit": True}, {"gradient_checkpointing": False}),
        ("llama", {"pooling": "mean"}, {}),
        ("llama", {"pooling": "attention", "bidirectional": True}, {}),
    ],
    ids=["Llama", "Gemma 3", "Qwen 3", "all weights", "recomputed", "4-bit", "mean", "attention, bidirectional"],
)
def test_no_step_waits_for_the_gpu_and_no_size_compiles_again(tmp_path: Path, kind: str, model, train) -> None:
    if model.get("use_4bit"):
        pytest.importorskip("bitsandbytes")
    training = Training(tmp_path, kind, model, train)
    training.run(WARM_UP)
    kernels = compiled_kernels()
    assert kernels > 0
    loss = training.run(WATCHED, no_waiting)
    assert np.isfinite(loss)
    assert compiled_kernels() == kernels


def test_the_watch_sees_a_wait() -> None:
    number = torch.ones(1, device=DEVICE)
    with no_waiting(), pytest.raises(RuntimeError, match="synchroniz"):
        number.item()
    with no_waiting(), pytest.raises(RuntimeError, match="synchroniz"):
        torch.ones(3).to(DEVICE)
