"""Fixtures: a tiny Llama, small product data, recipes over both, and an experiment that was trained once."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers import TOPICS, train

# Set before anything imports the libraries, and inherited by the processes that tests start: no hub, no telemetry, no
# progress bars, and one thread each, because several tests run at the same time.
os.environ |= {
    "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1",
}  # fmt: skip

WriteRecipe = Callable[..., Path]

# While the tests are collected, almost everything that is made stays; see `pytest_collection_finish`.
gc.disable()

# Libraries that are loaded later and exempt from garbage collection.
_exempt: list[str] = []

# Files with these tests are started first, so that no worker is left alone with a long one at the end.
LONGEST_FIRST = ("slurm", "distributed", "slow")


def pytest_configure(config: pytest.Config) -> None:
    """Keep the order of `pytest_collection_modifyitems`; pytest-xdist would sort files by their number of tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files, which run whole in one worker each (``--dist loadfile``) and so build their fixtures once."""
    weights: dict[Path, int] = {}
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        weight = next((i for i, name in enumerate(LONGEST_FIRST) if name in marks), len(LONGEST_FIRST))
        weights[item.path] = min(weight, weights.get(item.path, weight))
    items.sort(key=lambda item: weights[item.path])


def pytest_collection_finish() -> None:
    """Exempt what is loaded from garbage collection, which every training runs and which would take longer."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _what_training_loads_is_exempt_too() -> Iterator[None]:
    """Like `pytest_collection_finish`, for what a process loads when it trains for the first time."""
    yield
    if "peft" in sys.modules and not _exempt:
        _exempt.append("peft")
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tokenized data is cached for the tests only."""
    cache = tmp_path_factory.mktemp("datasets-cache")
    os.environ["HF_DATASETS_CACHE"] = str(cache)
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_DATASETS_CACHE = cache


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> None:
    """Each test opens its own process group and precision."""
    if "accelerate" in sys.modules:
        from tests.helpers import fresh_accelerator

        fresh_accelerator()


@pytest.fixture
def log_lines() -> Iterator[list[str]]:
    """The messages that llmcls logs during a test, in order."""
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    root, handler = logging.getLogger("llmcls"), Lines()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield lines
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with random-looking but trained weights and its tokenizer, without a pad token."""
    from llmcls.datasets.products import make_corpus
    from llmcls.model.tiny import write_tiny_llama

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    write_tiny_llama(folder, make_corpus(300, seed=0), seed=0, steps=3)
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder with learned positions and without a pooler, as masked-language checkpoints are."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def products(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train, validation and test.csv. The 61 test rows are divisible by neither 2 nor any batch size used."""
    from llmcls.datasets.products import write_data

    folder = tmp_path_factory.mktemp("products")
    write_data(folder, 7, {"train": 160, "validation": 40, "test": 61})
    return folder


def small_recipe(tiny_llama: Path, products: Path, output_root: Path) -> dict[str, dict[str, Any]]:
    """A complete small recipe as plain values."""
    return {
        "data": {
            "dataset_name": "products", "id_column": "uid", "text_fields": ["title", "description"],
            "max_length": 64, "train_csv": str(products / "train.csv"), "val_csv": str(products / "validation.csv"),
            "test_csv": str(products / "test.csv"), "label_columns": list(TOPICS),
        },
        "model": {
            "model_name": str(tiny_llama), "torch_dtype": "float32", "lora_r": 4, "lora_alpha": 8,
            "lora_dropout": 0.1, "lora_target_modules": ["q_proj", "v_proj"],
        },
        "train": {
            "batch_size": 8, "gradient_accumulation_steps": 2, "num_train_epochs": 2, "learning_rate": 2e-3,
            "logging_steps": 2, "report_to": [],
        },
        "exp": {"output_root": str(output_root), "seeds": [1], "baselines": False},
    }  # fmt: skip


@pytest.fixture
def recipe_values(tiny_llama: Path, products: Path, tmp_path: Path) -> dict[str, dict[str, Any]]:
    """The small recipe; a test changes what it is about."""
    return small_recipe(tiny_llama, products, tmp_path / "outputs")


@pytest.fixture
def write_recipe(recipe_values: dict[str, dict[str, Any]], tmp_path: Path) -> WriteRecipe:
    """A function that writes `recipe_values`, with changes given as section__key=value, and returns the path."""

    def write(**changes: Any) -> Path:
        for name, value in changes.items():
            section, _, key = name.partition("__")
            recipe_values[section][key] = value
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe_values), encoding="utf-8")
        return path

    return write


@pytest.fixture
def write_grid(write_recipe: WriteRecipe, tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a sweep of two keys and two seeds over the small recipe, with changes, and its path."""
    values = {
        "recipe": str(write_recipe()), "profile": "accel_configs/cpu.yaml", "seeds": [1, 2],
        "grid": {"train.learning_rate": [1e-4, 2e-4], "model.lora_target_modules": [["q_proj"], ["all-linear"]]},
    }  # fmt: skip

    def write(**changes: Any) -> Path:
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump(values | changes, sort_keys=False), encoding="utf-8")
        return path

    return write


@dataclass(frozen=True)
class Experiment:
    """A trained experiment: its recipe, the folder of all seeds, and the run of each seed."""

    recipe: Path
    folder: Path
    runs: tuple[Path, Path]


# What the shared experiment is trained with, besides the small recipe.
SHARED = {
    "train__num_train_epochs": 1, "train__report_to": ["tensorboard"], "exp__seeds": [1, 2], "exp__baselines": None,
}  # fmt: skip


@pytest.fixture(scope="session")
def trained_once(tiny_llama: Path, products: Path, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """The small recipe, trained for one epoch with two seeds. Read only: `trained` is a copy that a test may change."""
    folder = tmp_path_factory.mktemp("trained")
    values = small_recipe(tiny_llama, products, folder / "outputs")
    for name, value in SHARED.items():
        section, _, key = name.partition("__")
        values[section][key] = value
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
    experiment = train(recipe)
    return Experiment(recipe, experiment, (experiment / "run_0", experiment / "run_1"))


@pytest.fixture
def trained(trained_once: Experiment, write_recipe: WriteRecipe, tmp_path: Path) -> Experiment:
    """A copy of the experiment that was trained once, with a recipe that names the copy."""
    folder = tmp_path / "outputs" / trained_once.folder.relative_to(trained_once.recipe.parent / "outputs")
    shutil.copytree(trained_once.folder, folder)
    return Experiment(write_recipe(**SHARED), folder, (folder / "run_0", folder / "run_1"))
