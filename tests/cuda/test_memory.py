"""The traced memory of a step against that of a real one on a GPU, and trainings that do not fit into it."""

from __future__ import annotations

import gc
import re
import sys
from pathlib import Path
from subprocess import CompletedProcess, run
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from llmcls.common.files import write_json
from llmcls.data.batches import collate, plan_step
from llmcls.data.splits import Split
from llmcls.engine.accelerator import open_accelerator, prepare
from llmcls.model.build import build_classifier
from llmcls.model.pretrained import load_config
from llmcls.model.stand_in import kind_of
from llmcls.model.step_trace import MicroBatch, StepTracer
from llmcls.recipe.load import load_recipe
from llmcls.recipe.schema import DataSection, ExpSection, ModelSection, Recipe, TrainSection
from llmcls.results.run_folder import RunFolder
from llmcls.training.loop import optimizer_step
from llmcls.training.optimizer import build_optimizer
from llmcls.training.setup import TrainingSetup
from llmcls.training.token_budget import budget_key
from tests.conftest import WriteRecipe
from tests.cuda import DEVICE, NEEDS_GPU
from tests.cuda.helpers import write_model
from tests.helpers import ROOT, fresh_accelerator, read_json
from tests.model.helpers import LABELS

pytestmark = NEEDS_GPU

# 4,096 tokens.
LENGTHS = (1024, 800, 600, 512, 400, 300, 256, 128, 60, 16)
MIB = 2**20
# The matrix products of each of two threads, the one of the loop and that of the backward pass, have workspaces of up
# to 64 MiB; a trace does not see them.
WORKSPACES = 144 * MIB


@pytest.fixture(scope="module")
def middle_llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a Llama of 100 million random weights."""
    return write_model(
        tmp_path_factory.mktemp("models") / "middle-llama", "llama", vocab_size=8192, hidden_size=1024,
        intermediate_size=2816, num_hidden_layers=8, num_attention_heads=16, num_key_value_heads=4, head_dim=64,
        max_position_embeddings=2048,
    )  # fmt: skip


def memory_of_a_real_step(recipe: Recipe) -> tuple[int, int]:
    """The bytes in use before an optimizer step that is not the first, and the most in use during it."""
    fresh_accelerator()
    accelerator = open_accelerator(recipe)
    torch.manual_seed(0)
    classifier = build_classifier(recipe, LABELS, accelerator.device)
    assert classifier.packs
    model, optimizer = prepare(accelerator, classifier, build_optimizer(classifier, recipe, accelerator.device))
    model.train()
    rng, rows = np.random.default_rng(0), len(LENGTHS)
    tokens = [rng.integers(1, 300, length, dtype=np.int32) for length in LENGTHS]
    table = datasets.Dataset.from_dict({"id": [str(i) for i in range(rows)]})
    labels = (rng.random((rows, len(LABELS.names))) < 0.3).astype(np.float32)
    split = Split("train", "random", tokens, np.array(LENGTHS, dtype=np.int32), labels, table)
    folder = RunFolder(Path(recipe.exp.output_root))
    setup = TrainingSetup(recipe, 0, folder, accelerator, LABELS, split, None, rows, True, sum(LENGTHS))
    step = plan_step(np.arange(rows), split.lengths, setup.batches)
    assert len(step.micro_batches[0]) == 1
    batches = [collate(split, own, 0, True).pinned(accelerator.device) for own in step.micro_batches[0]]
    try:
        for number in range(3):
            before = torch.cuda.memory_allocated(DEVICE)
            torch.cuda.reset_peak_memory_stats(DEVICE)
            loss = float(optimizer_step(setup, model, optimizer, step, batches, number).loss_sum)
            assert np.isfinite(loss)
        return before, torch.cuda.max_memory_allocated(DEVICE)
    finally:
        accelerator.free_memory()


@pytest.mark.parametrize(
    "model, train",
    [
        ({"lora_dropout": 0.05}, {}),
        ({"lora_dropout": 0.05}, {"gradient_checkpointing": True}),
        ({"use_4bit": True}, {"gradient_checkpointing": False}),
        ({"use_4bit": True}, {"gradient_checkpointing": True}),
        ({"torch_dtype": "float32", "lora_r": 0}, {}),
        ({"lora_r": 0}, {}),
    ],
    ids=["LoRA", "LoRA recomputed", "4-bit", "4-bit recomputed", "all weights float32", "all weights bf16"],
)
def test_the_traced_memory_is_that_of_a_real_step(middle_llama: str, tmp_path: Path, model, train) -> None:
    if model.get("use_4bit"):
        pytest.importorskip("bitsandbytes")
    # What an earlier test left must not go away during this one.
    gc.collect()
    torch.cuda.empty_cache()
    earlier = torch.cuda.memory_allocated(DEVICE)
    recipe = Recipe(
        DataSection("d", "train.csv", LABELS.columns, max_length=1024),
        ModelSection(middle_llama, **({"lora_target_modules": ["all-linear"]} | model)),
        TrainSection(report_to=[], **train), ExpSection(str(tmp_path)),
    )  # fmt: skip
    before, peak = (found - earlier for found in memory_of_a_real_step(recipe))
    cost = StepTracer(recipe, load_config(recipe.model, LABELS), kind_of(DEVICE)).cost(MicroBatch(LENGTHS))
    held = cost.weights + cost.optimizer_state
    assert -0.02 * held <= before - held <= WORKSPACES, (before / MIB, held / MIB)
    # Without what exists before the step and would hide an error.
    assert cost.gradients + cost.activations == pytest.approx(peak - before, rel=0.1)


# Runs a command with this many bytes for the tensors of its process.
LIMITED = (
    "import sys, torch\n"
    "share = int(sys.argv.pop(1)) / torch.cuda.get_device_properties(0).total_memory\n"
    "torch.cuda.set_per_process_memory_fraction(share)\n"
    "from llmcls.common.command import run_command\n"
    "from llmcls.train import main\n"
    "run_command(main)\n"
)


def train_within(limit: int, *arguments: Any) -> CompletedProcess[str]:
    return run(
        [sys.executable, "-c", LIMITED, str(limit), *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )


@pytest.fixture
def large_step(write_recipe: WriteRecipe, middle_llama: str) -> Path:
    """A recipe whose only step of an epoch has 160 texts, which need 3 GiB in one pass."""
    return write_recipe(
        model__model_name=middle_llama, model__torch_dtype="bfloat16", model__lora_target_modules=["all-linear"],
        model__head_init="random", data__val_csv=None, data__test_csv=None, data__max_length=64,
        train__batch_size=160, train__gradient_accumulation_steps=1, train__num_train_epochs=3,
        train__eval_batch_size=8, train__train_metrics_rows=0, train__logging_steps=1,
    )  # fmt: skip


def test_a_step_that_does_not_fit_is_taken_again_in_smaller_parts(large_step: Path) -> None:
    recipe = load_recipe(large_step)
    key, file = budget_key(recipe, open_accelerator(recipe)), Path(recipe.exp.output_root) / "budgets.json"
    assert key is not None
    # As if it had been measured on an empty card: all texts of a step at once.
    write_json(file, {key: 160 * 64})
    done = train_within(1100 * MIB, large_step)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step 1 does not fit into the memory with" in done.stderr
    assert "is taken again with up to" in done.stderr
    assert read_json(file)[key] < 160 * 64
    (found,) = Path(recipe.exp.output_root).rglob("run_0")
    progress = read_json(found / "checkpoints/last/progress.json")
    assert (progress["step"], progress["skipped_steps"]) == (3, 0)
    assert (found / "metrics.json").exists()
    assert list(read_json(found / "environment.json")["micro_batch_tokens"].values()) == [read_json(file)[key]]


def test_with_a_fixed_budget_it_ends_with_what_helps(large_step: Path) -> None:
    done = train_within(1100 * MIB, large_step, f"train.micro_batch_tokens={160 * 64}")
    assert done.returncode == 2, done.stderr[-3000:]
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(r"no memory for \d+ tokens at once in step \d, which needs about \d", sentence), sentence
    assert "train.micro_batch_tokens=" in sentence
