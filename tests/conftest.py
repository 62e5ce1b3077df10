"""What the tests share: a tiny Llama with its own tokenizer, a small product set, and recipes over both."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

# Before anything imports them: no hub, no telemetry, and a cache of the tests' own.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

ROOT = Path(__file__).resolve().parent.parent
REUTERS = ROOT.parent / "shared" / "data" / "reuters10"
STORY_LLAMA = ROOT.parent / "shared" / "models" / "story-llama"
TOPICS = ["books", "music", "movies", "kitchen", "garden", "electronics", "toys", "sports", "pets", "vintage"]

needs_real_data = pytest.mark.skipif(
    not (REUTERS.is_dir() and STORY_LLAMA.is_dir()), reason="the Reuters set and story-llama are not beside the project"
)


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    import datasets

    cache = tmp_path_factory.mktemp("datasets-cache")
    os.environ["HF_DATASETS_CACHE"] = str(cache)
    datasets.config.HF_DATASETS_CACHE = cache
    datasets.disable_progress_bars()


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> None:
    """Each test opens its own process group and precision."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with random-looking but trained weights and its tokenizer, without a pad token."""
    from llmcls.datasets.products import make_corpus
    from llmcls.model.tiny import write_tiny_llama

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    write_tiny_llama(folder, make_corpus(300, seed=0), seed=0, steps=3)
    return folder


@pytest.fixture(scope="session")
def products(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/validation/test.csv; 61 test rows: divisible by neither 2 nor any batch size used."""
    from llmcls.datasets.products import write_data

    folder = tmp_path_factory.mktemp("products")
    write_data(folder, 7, {"train": 160, "validation": 40, "test": 61})
    return folder


@pytest.fixture
def recipe_values(tiny_llama: Path, products: Path, tmp_path: Path) -> dict[str, dict[str, Any]]:
    """A complete small recipe as plain values; a test changes what it is about."""
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
        "exp": {"output_root": str(tmp_path / "outputs"), "seeds": [1], "baselines": False},
    }  # fmt: skip


@pytest.fixture
def write_recipe(recipe_values: dict[str, dict[str, Any]], tmp_path: Path) -> Any:
    """A function that writes `recipe_values`, with changes given as section__key=value, and returns the path."""

    def write(**changes: Any) -> Path:
        for name, value in changes.items():
            section, _, key = name.partition("__")
            recipe_values[section][key] = value
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe_values), encoding="utf-8")
        return path

    return write


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write dictionaries as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a CSV as dictionaries."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
