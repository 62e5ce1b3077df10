from __future__ import annotations

import pytest
import torch

from llmcls.common.user_error import UserError
from tests.helpers import refusal
from tests.model.helpers import build


def adapted(model) -> set[str]:
    """The modules with an adapter, by layer and name: "0.self_attn.q_proj"."""
    names = [n for n, _ in model.named_parameters() if ".lora_A." in n]
    return {n.partition(".layers.")[2].partition(".lora_A.")[0] for n in names}


def test_the_named_modules_of_every_layer_get_an_adapter(write_recipe) -> None:
    model = build(write_recipe(model__lora_target_modules=["q_proj", "down_proj"]))
    assert adapted(model) == {f"{i}.{name}" for i in (0, 1) for name in ("self_attn.q_proj", "mlp.down_proj")}


def test_all_linear_is_every_linear_module_but_the_head(write_recipe) -> None:
    model = build(write_recipe(model__lora_target_modules=["all-linear"]))
    assert len(adapted(model)) == 2 * 7
    assert not any("score" in name for name in adapted(model))


@pytest.mark.parametrize("modules", [["q_proj"], ["all-linear"]])
@pytest.mark.parametrize("layers, expected", [([-1], {"1"}), ([0], {"0"}), ([0, -2], {"0"}), ([-1, 0], {"0", "1"})])
def test_layers_are_counted_from_either_end(write_recipe, modules, layers: list[int], expected: set[str]) -> None:
    model = build(write_recipe(model__lora_layers=layers, model__lora_target_modules=modules))
    assert {name.partition(".")[0] for name in adapted(model)} == expected


@pytest.mark.parametrize("variant, scale", [("lora", 8 / 4), ("rslora", 8 / 4**0.5)])
def test_the_scale_is_that_of_the_variant(write_recipe, variant: str, scale: float) -> None:
    model = build(write_recipe(model__lora_variant=variant))
    scales = {m.scaling["default"] for m in model.modules() if hasattr(m, "scaling") and hasattr(m, "lora_A")}
    assert scales == {scale}


def test_dora_learns_magnitudes(write_recipe) -> None:
    model = build(write_recipe(model__lora_variant="dora"))
    assert any("lora_magnitude_vector" in n for n, p in model.named_parameters() if p.requires_grad)


def test_a_new_adapter_changes_nothing(write_recipe) -> None:
    model = build(write_recipe()).eval()
    ids = torch.tensor([[0, 5, 6, 7]])
    with torch.no_grad():
        before = model(ids, [4])
        with model.model.disable_adapter():
            assert torch.equal(model(ids, [4]), before)


def test_a_module_that_the_model_does_not_have_is_named_with_those_it_has(write_recipe, capsys) -> None:
    found = refusal(capsys, "train", write_recipe(model__lora_target_modules=["query"]))
    assert "model.lora_target_modules names 'query', which" in found
    assert "down_proj, gate_proj, k_proj" in found


@pytest.mark.parametrize("layers", [[7], [-3], []])
def test_a_layer_that_the_model_does_not_have_is_refused(write_recipe, layers: list[int]) -> None:
    with pytest.raises(UserError, match=r"model\.lora_layers is \[.*\]; the layers are 0 to 1"):
        build(write_recipe(model__lora_layers=layers))


def test_a_rank_above_that_of_every_layer_is_refused_before_it_takes_memory(write_recipe) -> None:
    with pytest.raises(UserError, match=r"model\.lora_r is 1000000; no layer of .* has a rank above \d+; lower it"):
        build(write_recipe(model__lora_r=1_000_000))
