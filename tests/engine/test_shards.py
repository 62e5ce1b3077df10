from __future__ import annotations

import torch

from llmcls.engine.accelerator import open_accelerator, prepare
from llmcls.engine.shards import check_shards, torch_optimizer
from llmcls.recipe.load import load_recipe
from llmcls.training.optimizer import build_optimizer
from tests.model.helpers import CPU, TEXTS, build, lengths_of, packed_row


def test_one_process_holds_everything(write_recipe) -> None:
    path = write_recipe()
    recipe = load_recipe(path)
    accelerator, classifier = open_accelerator(recipe), build(path)
    model, optimizer = prepare(accelerator, classifier, build_optimizer(classifier, recipe, CPU))
    model(packed_row(TEXTS), lengths_of(TEXTS)).sum().backward()
    optimizer.step()
    sizes = check_shards(accelerator, model, optimizer)
    trained = sum(p.numel() for p in classifier.parameters() if p.requires_grad)
    assert sizes == {
        "weights": sum(p.numel() for p in classifier.parameters()),
        "weights_total": sizes["weights"],
        "optimizer_state": trained,
        "optimizer_state_total": trained,
    }


def test_the_innermost_optimizer_is_found() -> None:
    class Wrapper:
        def __init__(self, optimizer: object) -> None:
            self.optimizer = optimizer

    inner = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    assert torch_optimizer(inner) is inner
    assert torch_optimizer(Wrapper(Wrapper(inner))) is inner
