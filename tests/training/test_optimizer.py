from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from llmcls.recipe import defaults
from llmcls.recipe.load import load_recipe
from llmcls.training.optimizer import build_optimizer, learning_rate_factor
from tests.model.helpers import build


@pytest.mark.parametrize("kind, end", [("cosine", 0.0), ("linear", 0.0), ("constant", 1.0)])
def test_the_schedule_warms_up_and_ends_where_its_name_says(kind: str, end: float) -> None:
    rates = [learning_rate_factor(step, 100, 0.1, kind) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert max(rates) == pytest.approx(1.0)
    assert rates[100] == pytest.approx(end, abs=1e-9)
    assert all(np.diff(rates[10:]) <= 1e-12)


def test_eight_bit_adamw_is_used_for_four_bit_models_that_train_many_weights_and_can_be_refused(write_recipe) -> None:
    def kind(overrides: list[str], large: bool = True) -> str:
        # The optimizer creates its state at the first step, so a large layer costs one allocation that is never filled.
        layer = torch.nn.utils.skip_init(torch.nn.Linear, 10_000, 10_000 if large else 10)
        return type(build_optimizer(layer, load_recipe(path, overrides), torch.device("cpu"))).__name__

    path = write_recipe()
    assert kind(["use_4bit=true"]) == "AdamW8bit"
    assert kind(["use_4bit=true"], large=False) == "AdamW"
    assert kind(["use_4bit=true", "optim_8bit_when_4bit=false"]) == "AdamW"
    assert kind([]) == "AdamW"


def test_an_adapter_gets_the_fused_optimizer(write_recipe) -> None:
    path = write_recipe()
    optimizer = build_optimizer(build(path, "use_4bit=true"), load_recipe(path, ["use_4bit=true"]), torch.device("cpu"))
    assert type(optimizer).__name__ == "AdamW"
    assert all(group["fused"] for group in optimizer.param_groups)


def test_eight_bit_adamw_falls_back_and_says_so(write_recipe, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    import logging

    import bitsandbytes

    def no_kernel(*_: Any, **__: Any) -> None:
        raise NotImplementedError("no kernel for this device")

    monkeypatch.setattr(bitsandbytes.optim.AdamW8bit, "step", no_kernel)
    monkeypatch.setattr(defaults, "EIGHT_BIT_FROM", 0)
    logging.getLogger("llmcls").propagate = True
    recipe = load_recipe(write_recipe(), ["use_4bit=true"])
    with caplog.at_level("WARNING", logger="llmcls"):
        optimizer = build_optimizer(torch.nn.Linear(64, 64), recipe, torch.device("cpu"))
    assert type(optimizer).__name__ == "AdamW"
    assert "no kernel for this device" in caplog.text


def test_weight_decay_spares_vectors(write_recipe) -> None:
    recipe = load_recipe(write_recipe(train__weight_decay=0.3))
    optimizer = build_optimizer(torch.nn.Linear(4, 4), recipe, torch.device("cpu"))
    decay = {p.dim(): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decay == {2: 0.3, 1: 0.0}
