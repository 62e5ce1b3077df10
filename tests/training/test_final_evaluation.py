from __future__ import annotations

import json

import numpy as np
import pytest
from accelerate import PartialState

from llmcls.recipe.load import load_recipe
from llmcls.training.final_evaluation import scalars, training_sample
from llmcls.training.inputs import load_inputs
from tests.helpers import train

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("accumulation", [1, 8])
def test_the_logged_loss_is_on_the_scale_of_the_evaluation_loss(write_recipe, accumulation: int) -> None:
    # With a learning rate of next to nothing both are the loss of the untrained model.
    recipe = write_recipe(
        train__batch_size=4, train__gradient_accumulation_steps=accumulation, train__learning_rate=1e-9,
        train__num_train_epochs=1, model__lora_dropout=0.0,
    )  # fmt: skip
    root = train(recipe, "train_metrics_rows=1000")
    found = json.loads((root / "run_0" / "metrics.json").read_text(encoding="utf-8"))
    assert found["training"]["loss"] == pytest.approx(found["train"]["loss"], rel=1e-4)


def test_a_sample_of_the_training_rows_is_drawn_with_the_seed(write_recipe) -> None:
    split = load_inputs(load_recipe(write_recipe()), PartialState(cpu=True)).train_split
    assert training_sample(split, 0, seed=1) is None
    assert training_sample(split, 160, seed=1) is split
    first, again, other = (training_sample(split, 20, seed) or split for seed in (1, 1, 2))
    assert len(first) == 20
    assert np.array_equal(first.lengths, again.lengths)
    assert not np.array_equal(first.known_labels, other.known_labels)
    # A drawn row keeps its labels.
    row = next(i for i in range(160) if list(split.tokens[i]) == list(first.tokens[0]))
    assert np.array_equal(first.known_labels[0], split.known_labels[row])


def test_scalars_are_what_fits_a_single_cell() -> None:
    assert scalars({"loss": 0.5, "per_class": {"a": 1}, "values": [1, 2], "n": 3}) == {"loss": 0.5, "n": 3}
