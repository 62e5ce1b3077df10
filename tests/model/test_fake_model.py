from __future__ import annotations

import logging

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import masking_utils

from llmcls.common.user_error import UserError
from llmcls.model.build import build_classifier
from llmcls.model.classifier import count_parameters
from llmcls.model.fake_model import KnownValues, fake_classifier, silence, tensors_of
from llmcls.model.pretrained import load_config
from llmcls.model.stand_in import DeviceKind
from llmcls.recipe.load import load_recipe
from tests.model.helpers import CPU, LABELS

THIS_CPU = DeviceKind("cpu", flash=False, compiled=False)


@pytest.mark.parametrize(
    "overrides",
    [[], ["use_4bit=true"], ["lora_r=0", "pooling=attention"], ["lora_variant=dora", "torch_dtype=bfloat16"]],
    ids=["LoRA", "4-bit", "all weights", "DoRA"],
)
def test_it_has_the_tensors_of_the_real_classifier_without_values(write_recipe, overrides: list[str]) -> None:
    recipe = load_recipe(write_recipe(), overrides)
    real = build_classifier(recipe, LABELS, CPU)
    fake, parameters = fake_classifier(recipe, load_config(recipe.model, LABELS), THIS_CPU, FakeTensorMode())

    def shapes(model: torch.nn.Module) -> list[tuple]:
        return sorted((tuple(t.shape), str(t.dtype)) for t in tensors_of(model))

    assert shapes(fake) == shapes(real)
    assert all(isinstance(tensor, FakeTensor) for tensor in tensors_of(fake))
    trained = {n: tuple(p.shape) for n, p in real.named_parameters() if p.requires_grad}
    assert {n: tuple(p.shape) for n, p in fake.named_parameters() if p.requires_grad} == trained
    assert (fake.packs, fake.training) == (real.packs, True)
    head = real.sequence_classifier.score
    # Beside the model: the adapter and the copy of the head that peft trains.
    assert parameters <= count_parameters(real)[1]
    assert parameters > 10 * sum(p.numel() for p in head.parameters())


def test_what_does_not_fit_the_recipe_is_an_error_of_the_user(write_recipe) -> None:
    recipe = load_recipe(write_recipe(), ["lora_target_modules=[qkv]"])
    with pytest.raises(UserError, match="qkv"):
        fake_classifier(recipe, load_config(recipe.model, LABELS), THIS_CPU, FakeTensorMode())


def test_questions_about_values_are_answered() -> None:
    find = masking_utils.find_packed_sequence_indices
    with FakeTensorMode(), KnownValues([3, 2]):
        states, mask = torch.empty(2, 3, 8), torch.ones(2, 3, dtype=torch.bool)
        assert states[mask].shape == (5, 8)
        assert not (torch.empty(1).max() > 4096)
        assert masking_utils.find_packed_sequence_indices(mask) is None
    assert masking_utils.find_packed_sequence_indices is find


def test_building_it_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("llmcls.model.build")
    with silence():
        logger.warning("unheard")
    logger.warning("heard")
    assert [record.message for record in caplog.records] == ["heard"]
