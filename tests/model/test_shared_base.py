from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llmcls.data.labels import LabelSpace
from llmcls.model.build import build_classifier, load_trained_classifier
from llmcls.model.shared_base import SavedAdapter, load_sharing_classifiers, shareable_base
from llmcls.recipe.load import load_recipe
from tests.model.helpers import CPU

pytestmark = pytest.mark.slow

TEXTS = [[0, 5, 6, 7], [0, 9], [0, 3, 4]]


def saved(path: Path, folder: Path, labels: int) -> SavedAdapter:
    """An adapter with random weights, saved as a run saves it."""
    names = [f"label {i}" for i in range(labels)]
    recipe, space = load_recipe(path), LabelSpace(names, names, "multi_label_classification")
    classifier = build_classifier(recipe, space, CPU)
    for name, parameter in classifier.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    classifier.model.save_pretrained(folder)
    return SavedAdapter(recipe, space, folder)


@torch.no_grad()
def logits(classifier: Any) -> torch.Tensor:
    row = torch.tensor([token for text in TEXTS for token in text])
    return classifier.eval()(row, [len(text) for text in TEXTS])


@pytest.mark.parametrize(
    "changes", [{}, {"model__use_4bit": True}, {"model__pooling": "attention", "model__lora_variant": "dora"}]
)
def test_each_classifier_answers_as_if_it_were_alone(changes: dict[str, Any], write_recipe, tmp_path: Path) -> None:
    torch.manual_seed(0)
    adapters = [saved(write_recipe(**changes), tmp_path / "a", 3)]
    other = write_recipe(model__lora_r=2, model__lora_target_modules=["k_proj", "down_proj"], data__max_length=32)
    adapters += [saved(other, tmp_path / "b", 5), saved(other, tmp_path / "c", 3)]
    classifiers = load_sharing_classifiers(adapters, CPU)
    bases = {id(c.sequence_classifier.base_model.embed_tokens) for c in classifiers}
    assert len(bases) == 1, "one base in memory"
    expected = [logits(load_trained_classifier(a.recipe, a.labels, a.folder, CPU)) for a in adapters]
    assert [found.shape[1] for found in expected] == [3, 5, 3]
    assert not torch.allclose(expected[0], expected[2])
    for i in (0, 1, 2, 1, 0, 2):
        assert torch.allclose(logits(classifiers[i]), expected[i], atol=1e-5), f"classifier {i}"


def test_runs_share_a_base_that_is_loaded_and_read_alike(write_recipe) -> None:
    recipe = load_recipe(write_recipe())
    key = shareable_base(recipe)
    same = replace(recipe.model, lora_r=2, lora_alpha=3, lora_variant="dora")
    assert shareable_base(replace(recipe, model=same)) == key
    for change in ({"pooling": "mean"}, {"torch_dtype": "bfloat16"}, {"model_name": "org/other"}, {"use_4bit": True}):
        assert shareable_base(replace(recipe, model=replace(recipe.model, **change))) != key
    assert shareable_base(replace(recipe, model=replace(recipe.model, lora_r=0))) is None
