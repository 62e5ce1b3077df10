from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from llmcls.data.steps import global_batch_size
from llmcls.engine.accelerator import open_accelerator, prepare, unwrapped
from llmcls.evaluation.scoring import Scorer, make_scorer, score_split
from llmcls.model.build import build_classifier
from llmcls.model.head import head_linear
from llmcls.recipe.load import load_recipe
from llmcls.results.run_folder import ExperimentFolder
from llmcls.training.inputs import Inputs, load_inputs
from llmcls.training.optimizer import build_optimizer
from llmcls.training.setup import TrainingSetup
from llmcls.training.warm_start import warm_start
from tests.helpers import TOPICS, fresh_accelerator


@dataclass
class Start:
    """A run before its first step."""

    setup: TrainingSetup
    model: Any
    scorer: Scorer
    inputs: Inputs

    def head(self) -> np.ndarray:
        linear = head_linear(unwrapped(self.model), len(self.setup.labels.names))
        assert linear is not None
        return linear.weight.detach().numpy().copy()

    def warm(self) -> Start:
        warm_start(self.setup, self.model, self.scorer, self.inputs)
        return self

    def loss(self) -> float:
        split = self.inputs.train_split
        logits, labels = torch.tensor(score_split(self.scorer, split)), torch.tensor(split.known_labels)
        return float(self.setup.loss_of(logits, labels).mean())


@pytest.fixture
def start(write_recipe) -> Callable[..., Start]:
    def build(*overrides: str, seed: int = 1, **changes: Any) -> Start:
        fresh_accelerator()
        recipe = load_recipe(write_recipe(**{"data__label_columns": TOPICS[:3]} | changes), list(overrides))
        accelerator = open_accelerator(recipe)
        inputs = load_inputs(recipe, accelerator)
        torch.manual_seed(seed)
        classifier = build_classifier(recipe, inputs.labels, accelerator.device)
        model, _ = prepare(accelerator, classifier, build_optimizer(classifier, recipe, accelerator.device))
        rows, run = global_batch_size(recipe, 1), ExperimentFolder.of(recipe).run(0)
        splits = inputs.train_split, inputs.validation_split
        setup = TrainingSetup(recipe, seed, run, accelerator, inputs.labels, *splits, rows, classifier.packs, 512)
        scorer = make_scorer(accelerator, model, inputs.labels, inputs.tokenizer.pad_token_id, recipe)
        return Start(setup, model, scorer, inputs)

    return build
