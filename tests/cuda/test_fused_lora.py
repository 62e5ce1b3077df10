"""LoRA as one function on a GPU: against the layers of peft in float32, and the draws of its dropout."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from llmcls.model.four_bit import unpack_scales
from llmcls.model.fused_lora import lora_linear, project
from llmcls.model.lora_products import base_weight
from tests.cuda import DEVICE, NEEDS_GPU
from tests.cuda.helpers import off, random

pytestmark = NEEDS_GPU

WIDTH, ROWS = 256, 300
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


class Block(nn.Module):
    """Three layers that read the same input, one of them with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, 512, bias=False), nn.Linear(WIDTH, 128)
        self.three = nn.Linear(WIDTH, WIDTH, bias=False)

    def layers(self) -> list[Any]:
        return [self.one, self.two, self.three]


def four_bit(layer: nn.Linear, dtype: torch.dtype) -> nn.Module:
    """A layer with the 4-bit weights of another, as `llmcls.model.pretrained` loads them."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    small = Linear4bit(
        layer.in_features, layer.out_features, layer.bias is not None, dtype, quant_type="nf4", quant_storage=dtype
    )
    small.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", quant_storage=dtype)
    small.bias = layer.bias
    # The copy to a device quantizes.
    return small.to(DEVICE)


def adapted(dtype: torch.dtype = torch.float32, dropout: float = 0.0, quantized: bool = False) -> Block:
    """The block on the GPU, with frozen weights of this precision and an adapter that has an effect."""
    torch.manual_seed(0)
    block: Any = Block()
    if quantized:
        for name, layer in list(block.named_children()):
            setattr(block, name, four_bit(layer, dtype))
    else:
        block = block.to(dtype)
    config = LoraConfig(r=8, lora_alpha=16, lora_dropout=dropout, target_modules=["one", "two", "three"])
    model = get_peft_model(block, config).to(DEVICE)
    for i, (name, parameter) in enumerate(model.named_parameters()):
        if "lora_" in name:
            scale = 0.3 if "lora_B" in name else WIDTH**-0.5
            parameter.data = (scale * random(*parameter.shape, seed=i)).to(DEVICE)
    return model.get_base_model()


def outputs_and_gradients(block: Block, fused: bool, dtype: torch.dtype, compiled: bool = False) -> list[torch.Tensor]:
    """The three outputs, and the gradients of the input and of the matrices of the adapter."""
    block.zero_grad()
    # The same input for every precision.
    x = random(2, ROWS // 2, WIDTH, seed=1).bfloat16().to(DEVICE, dtype).requires_grad_()
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        outputs = project(block.layers(), x, compiled) if fused else [layer(x) for layer in block.layers()]
    assert all(out.dtype == dtype for out in outputs)
    weights = [random(*out.shape, seed=2 + i).to(DEVICE) for i, out in enumerate(outputs)]
    sum((out.float() * weight).sum() for out, weight in zip(outputs, weights, strict=True)).backward()
    trained = [p.grad for p in block.parameters() if p.requires_grad]
    assert len(trained) == 6
    return [*outputs, x.grad, *trained]


@pytest.mark.parametrize("quantized", [False, pytest.param(True, marks=needs_bitsandbytes)], ids=["plain", "4-bit"])
def test_in_float32_outputs_and_gradients_are_those_of_peft(quantized: bool) -> None:
    block = adapted(quantized=quantized)
    assert all(lora_linear(layer) is not None for layer in block.layers())
    found, expected = (outputs_and_gradients(block, fused, torch.float32) for fused in (True, False))
    distances = [off(a, b) for a, b in zip(found, expected, strict=True)]
    assert all(distance <= 1e-5 for distance in distances), distances


@pytest.mark.parametrize("quantized", [False, pytest.param(True, marks=needs_bitsandbytes)], ids=["plain", "4-bit"])
@pytest.mark.parametrize("compiled", [False, True], ids=["products", "kernels"])
def test_in_bf16_outputs_and_gradients_are_as_near_to_float32_as_those_of_peft(quantized: bool, compiled: bool) -> None:
    block = adapted(torch.bfloat16, quantized=quantized)
    assert all(lora_linear(layer) is not None for layer in block.layers())
    found, plain = (outputs_and_gradients(block, fused, torch.bfloat16, compiled) for fused in (True, False))
    # The same rounded weights in float32.
    exact = adapted()
    for layer, rounded in zip(exact.layers(), block.layers(), strict=True):
        layer.base_layer.weight.data = base_weight(rounded.base_layer, torch.float32)
    expected = outputs_and_gradients(exact, False, torch.float32)
    distances = [(off(a, c), off(b, c)) for a, b, c in zip(found, plain, expected, strict=True)]
    assert all(peft <= 3e-2 and fused <= max(1e-2, 1.5 * peft) for fused, peft in distances), distances


def test_one_mask_serves_all_layers_of_an_input() -> None:
    block = adapted(dropout=0.5).train()
    x = torch.eye(WIDTH, device=DEVICE)
    torch.manual_seed(3)
    low = [out - layer.base_layer(x) for out, layer in zip(project(block.layers(), x), block.layers(), strict=True)]
    # Row i shows input i alone: where it was dropped, it is missing from every layer.
    dropped = [out.abs().amax(1) < 1e-5 for out in low]
    # Five standard deviations of a share of 256 draws.
    assert abs(float(dropped[0].float().mean()) - 0.5) < 5 * 0.5 / WIDTH**0.5
    assert all(torch.equal(dropped[0], other) for other in dropped[1:])
    kept = ~dropped[0]
    full = block.one.lora_B["default"].weight @ block.one.lora_A["default"].weight * 2.0
    assert off(low[0][kept], 2 * full.t()[kept]) <= 1e-5


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_the_mean_over_masks_is_the_output_without_dropout(rate: float) -> None:
    block, x = adapted(dropout=rate), random(ROWS, WIDTH).to(DEVICE)
    with torch.no_grad():
        expected = project(block.eval().layers(), x)[0]
        block.train()
        draws = torch.stack([project(block.layers(), x)[0] for _ in range(400)])
    assert float(draws.std(0).mean()) > 0
    # Each element within six standard deviations of its mean, and all together with no bias.
    error = (draws.mean(0) - expected) / (draws.std(0) / 20)
    assert float(error.abs().max()) < 6
    assert abs(float(error.mean())) < 0.1


@pytest.mark.parametrize("argument", ["input", "A", "B"])
def test_the_backward_pass_has_the_mask_of_the_forward_pass(argument: str) -> None:
    # With its mask fixed by the seed, the function is linear in each of these, so one step tells its gradient exactly.
    block = adapted(dropout=0.3).train()
    x = random(ROWS, WIDTH).to(DEVICE).requires_grad_()
    weights = [random(ROWS, out, seed=2 + out).to(DEVICE) for out in (512, 128, WIDTH)]
    parts = {"input": x, "A": block.two.lora_A["default"].weight, "B": block.two.lora_B["default"].weight}
    moved = parts[argument]

    def loss() -> torch.Tensor:
        torch.manual_seed(5)
        outs = project(block.layers(), x)
        return sum((out * weight).double().sum() for out, weight in zip(outs, weights, strict=True))  # type: ignore[return-value]

    before = loss()
    (gradient,) = torch.autograd.grad(before, moved)
    with torch.no_grad():
        # Along the gradient, where a part of it that is missing shows most.
        step = gradient * float(moved.norm() / gradient.norm())
        expected = float((gradient.double() * step).sum())
        moved += step
        assert float(loss() - before) == pytest.approx(expected, rel=1e-3)


def test_draws_are_a_function_of_the_seed() -> None:
    block, x = adapted(dropout=0.3).train(), random(ROWS, WIDTH).to(DEVICE)
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(project(block.layers(), x)[0])
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_4_bit_weights_are_unpacked_as_by_bitsandbytes(dtype: torch.dtype) -> None:
    for outputs, inputs in ((512, 256), (40, 96), (8192, 2048)):
        layer = four_bit(nn.Linear(inputs, outputs, bias=False), dtype)
        unpacked = base_weight(layer, dtype)
        unpack_scales(layer, 2**40)
        assert not layer.weight.quant_state.nested
        assert torch.equal(base_weight(layer, dtype, compiled=True), base_weight(layer, dtype))
        assert off(base_weight(layer, dtype), unpacked) <= 1e-2
