"""What a pretrained model reads in texts before it is fine-tuned."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llmcls.data.splits import Split
from llmcls.engine.accelerator import open_accelerator, prepare
from llmcls.evaluation.scoring import make_scorer
from llmcls.evaluation.states import collect_states
from llmcls.model.build import build_classifier
from llmcls.model.head import head_linear
from llmcls.recipe.schema import Recipe
from llmcls.training.inputs import Inputs, load_inputs
from llmcls.training.optimizer import build_optimizer


def frozen_states(recipe: Recipe) -> tuple[Inputs, Callable[[Split], np.ndarray], bool]:
    """What the pretrained model of a recipe, not fine-tuned, reads in texts.

    Returns
    -------
    The data of the recipe, a function from a split to its states (float32 [rows, hidden]), and whether the head that
    reads them has a bias.
    """
    accelerator = open_accelerator(recipe)
    inputs = load_inputs(recipe, accelerator)
    classifier = build_classifier(recipe, inputs.labels, accelerator.device)
    model, _ = prepare(accelerator, classifier, build_optimizer(classifier, recipe, accelerator.device))
    scorer = make_scorer(accelerator, model, inputs.labels, inputs.tokenizer.pad_token_id, recipe)
    linear = head_linear(model, len(inputs.labels.names))
    assert linear is not None

    def states(split: Split) -> np.ndarray:
        found = collect_states(scorer, split, linear)
        assert found is not None
        return found

    return inputs, states, linear.bias is not None
