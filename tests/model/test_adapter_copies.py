from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from llmcls.model import adapter_copies
from llmcls.model.adapter_copies import AdapterCopies
from llmcls.model.fused_lora import lora_linear
from llmcls.model.lora_products import rounded

WIDTH, BF16 = 16, torch.bfloat16


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Linear(WIDTH, n, bias=False) for n in (24, 8, WIDTH))


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model with three adapters, on what counts as a GPU here."""
    monkeypatch.setattr(adapter_copies, "device_kind", lambda _: "cuda")
    torch.manual_seed(0)
    adapted = get_peft_model(Block(), LoraConfig(r=4, target_modules=["one", "two", "three"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return adapted.get_base_model()


def layers_of(model: Any, *names: str) -> list[Any]:
    return [lora_linear(getattr(model, name)) for name in names]


def assert_equal(found: Any, expected: Any) -> None:
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(a, b) for a, b in zip(found[1], expected[1], strict=True))


def narrow() -> Any:
    return torch.autocast("cpu", dtype=BF16)


@pytest.mark.parametrize("names", [("one",), ("one", "two"), ("one", "two", "three"), ("three", "one")])
def test_copies_are_the_rounded_matrices_of_this_pass(model: Any, names: tuple[str, ...]) -> None:
    copies, layers = AdapterCopies(model), layers_of(model, *names)
    for _ in range(2):
        with narrow(), copies.current():
            a, b = copies.of(layers, BF16)
            assert_equal((a, b), rounded(layers, BF16))
            assert all(matrix.is_contiguous() for matrix in (a, *b))
            # Of layers in their order, nothing is made for a call.
            again = copies.of(layers_of(model, *names), BF16)
            assert (again[0].data_ptr() == a.data_ptr()) == (names != ("three", "one"))
        # As an optimizer does it that torch does not see.
        model.one.lora_A["default"].weight.data.mul_(3.0)
        model.one.lora_B["default"].weight.data.mul_(3.0)


def test_outside_of_a_pass_and_in_another_precision_matrices_are_rounded_anew(model: Any) -> None:
    copies, layers = AdapterCopies(model), layers_of(model, "one", "two")
    with narrow(), copies.current():
        kept = copies.of(layers, BF16)
        assert_equal(copies.of(layers, torch.float16), rounded(layers, torch.float16))
    model.one.lora_A["default"].weight.data.mul_(3.0)
    assert_equal(copies.of(layers, BF16), rounded(layers, BF16))
    assert not torch.equal(copies.of(layers, BF16)[0], kept[0])
    # Without autocast there is no precision to round to.
    with copies.current():
        assert_equal(copies.of(layers, torch.float32), rounded(layers, torch.float32))


def test_an_adapter_that_has_come_since_is_rounded_anew(model: Any) -> None:
    copies = AdapterCopies(model)
    with narrow(), copies.current():
        copies.of(layers_of(model, "one", "two"), BF16)
    model.one.lora_A["default"].weight = nn.Parameter(torch.randn(4, WIDTH))
    layers = layers_of(model, "one", "two")
    with narrow(), copies.current():
        assert_equal(copies.of(layers, BF16), rounded(layers, BF16))


def test_adapters_that_take_turns_all_have_copies(model: Any) -> None:
    copies, seen = AdapterCopies(model), set()
    for layer in (model.one, model.two, model.three):
        layer.update_layer("other", r=2, lora_alpha=2, config=LoraConfig(r=2), inference_mode=False)
    for name in ("default", "other", "default"):
        for layer in (model.one, model.two, model.three):
            layer.set_adapter(name)
        with narrow(), copies.current():
            layers = layers_of(model, "one", "two")
            found = copies.of(layers, BF16)
            assert_equal(found, rounded(layers, BF16))
            assert copies.of(layers, BF16)[0].data_ptr() == found[0].data_ptr()
            seen.add(len(found[0]))
    assert seen == {8, 4}


def test_where_an_engine_shards_the_matrices_they_are_rounded_where_they_are_used(model: Any) -> None:
    copies = AdapterCopies(model)
    with narrow(), copies.current():
        copies.of(layers_of(model, "one"), BF16)
    whole = model.two.lora_A["default"].weight.data
    # As ZeRO-3 leaves a weight that another rank holds.
    model.two.lora_A["default"].weight.data = torch.empty(0)
    for seen in (copies, AdapterCopies(model)):
        with narrow(), seen.current():
            model.two.lora_A["default"].weight.data = whole
            layers = layers_of(model, "one", "two")
            assert_equal(seen.of(layers, BF16), rounded(layers, BF16))
            model.two.lora_A["default"].weight.data = torch.empty(0)


def test_what_a_pass_has_kept_is_still_valid_after_another_pass(model: Any) -> None:
    copies, layers = AdapterCopies(model), layers_of(model, "one")
    x = torch.ones(3, WIDTH, dtype=BF16, requires_grad=True)
    with narrow(), copies.current():
        out = x @ copies.of(layers, BF16)[0].t()
    with narrow(), copies.current():
        pass
    # Torch refuses this if it takes the second pass for a change of what the first one has kept.
    out.sum().backward()
    assert torch.equal(x.grad[0], copies.of(layers, BF16)[0].sum(0))


def test_a_model_without_adapters_has_no_copies() -> None:
    with narrow(), AdapterCopies(Block()).current():
        pass
