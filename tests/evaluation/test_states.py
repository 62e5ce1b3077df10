from __future__ import annotations

import numpy as np
import pytest
from accelerate import Accelerator

from llmcls.evaluation import scoring
from llmcls.evaluation.scoring import make_scorer, score_split
from llmcls.evaluation.states import collect_states, state_chunks
from llmcls.model.head import head_linear
from llmcls.recipe.load import load_recipe
from llmcls.training.inputs import load_inputs
from tests.model.helpers import build


@pytest.mark.parametrize(
    "overrides",
    [
        ["pooling=last"],
        ["pooling=mean", "bidirectional=true"],
        ["pooling=attention", "packing=false"],
        ["truncation=windows", "max_length=24", "window_overlap=4"],
    ],
    ids=lambda o: ",".join(o),
)
def test_states_are_what_the_head_turns_into_logits(write_recipe, overrides: list[str], monkeypatch) -> None:
    monkeypatch.setattr(scoring, "CHUNK_ROWS", 32)
    path = write_recipe()
    recipe, accelerator = load_recipe(path, overrides), Accelerator(cpu=True)
    inputs, model = load_inputs(recipe, accelerator), build(path, *overrides)
    scorer = make_scorer(accelerator, model, inputs.labels, inputs.tokenizer.pad_token_id, recipe)
    linear, split = head_linear(model, len(inputs.labels.names)), inputs.test_split
    assert linear is not None
    assert split is not None
    states = collect_states(scorer, split, linear)
    assert states is not None
    assert states.shape == (61, 96)
    expected = score_split(scorer, split)
    assert states @ linear.weight.detach().numpy().T == pytest.approx(expected, abs=1e-5)
    assert [len(chunk) for _, chunk in state_chunks(scorer, split, linear)] == [32, 29]
    assert np.isfinite(states).all()
    parts = [numbers for _, numbers in state_chunks(scorer, split, linear, 32, with_logits=True)]
    assert np.concatenate(parts) == pytest.approx(np.concatenate([states, expected], axis=1)[32:], abs=1e-5)
