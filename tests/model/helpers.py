"""What the tests of models share: texts of different lengths, the classifier of a recipe, and ways to run it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from llmcls.data.labels import LabelSpace
from llmcls.model.build import build_classifier
from llmcls.model.classifier import Classifier
from llmcls.recipe.load import load_recipe
from tests.helpers import ROOT, TOPICS

CPU = torch.device("cpu")
LABELS = LabelSpace(list(TOPICS), list(TOPICS), "multi_label_classification")
TEXTS = [list(range(3, 3 + n)) for n in (17, 1, 40, 5, 5, 64, 2)]


def build(recipe_path: Path, *overrides: str) -> Classifier:
    """The classifier of a recipe, with the random weights of seed 0."""
    torch.manual_seed(0)
    return build_classifier(load_recipe(recipe_path, list(overrides)), LABELS, CPU)


def lengths_of(texts: list[list[int]]) -> list[int]:
    """Tokens of each text."""
    return [len(text) for text in texts]


def packed_row(texts: list[list[int]]) -> torch.Tensor:
    """Text after text, int64 [tokens]."""
    return torch.tensor([token for text in texts for token in text])


def padded_rows(texts: list[list[int]], pad: int = 0) -> torch.Tensor:
    """Right-padded texts, int64 [texts, longest]."""
    longest = max(map(len, texts))
    return torch.tensor([text + [pad] * (longest - len(text)) for text in texts])


def one_by_one(model: Classifier, texts: list[list[int]]) -> torch.Tensor:
    """Logits of each text alone, float32 [texts, labels]."""
    return torch.cat([model(torch.tensor([text]), [len(text)]) for text in texts])


def damaged(model: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """A copy of a model folder in which some weights were changed."""
    shutil.copytree(model, target)
    weights = load_file(target / "model.safetensors")
    change(weights)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def json_lines_of(script: str, **environment: str) -> list[Any]:
    """The lines of JSON that a Python script prints in a process of its own, with these variables besides ours."""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith(("[", "{"))]
