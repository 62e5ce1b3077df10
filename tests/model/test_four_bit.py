"""4-bit weights: the scales of their blocks, packed and unpacked."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llmcls.model.four_bit import dequantized, quantization, quantized_layers, unpack_scales

pytest.importorskip("bitsandbytes")

BLOCKS = 512 * 256 // 64


@pytest.fixture
def model() -> nn.Module:
    from bitsandbytes.nn import Linear4bit

    torch.manual_seed(0)
    layer = Linear4bit(256, 512, bias=False, compress_statistics=True, quant_type="nf4", compute_dtype=torch.bfloat16)
    return nn.Sequential(layer.to("cpu"), nn.Linear(512, 4))


def test_unpacked_scales_leave_the_weights_as_they_are(model: nn.Module) -> None:
    from bitsandbytes.functional import dequantize_4bit

    weight, x = model[0].weight, torch.randn(4, 256)
    before, out = dequantize_4bit(weight, weight.quant_state), model[0](x)
    assert quantized_layers(model) == 1
    unpack_scales(model, most=3 * BLOCKS)
    assert not weight.quant_state.nested
    assert (weight.quant_state.absmax.dtype, weight.quant_state.absmax.numel()) == (torch.float32, BLOCKS)
    assert torch.equal(dequantize_4bit(weight, weight.quant_state), before)
    assert torch.equal(model[0](x), out)
    # A second time changes nothing.
    unpack_scales(model, most=3 * BLOCKS)
    assert torch.equal(model[0](x), out)


def test_scales_that_would_take_too_much_stay_packed(model: nn.Module) -> None:
    unpack_scales(model, most=3 * BLOCKS - 1)
    assert model[0].weight.quant_state.nested
    assert model[0].weight.quant_state.absmax.dtype == torch.uint8


def test_scales_follow_a_weight_that_an_engine_moved_alone(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = model[0].weight
    state, expected = weight.quant_state, dequantized(weight, weight.quant_state, torch.float32, compiled=True)
    scales, moved = state.absmax, []

    def to(device: torch.device) -> None:
        moved.append(device)
        state.absmax = scales

    monkeypatch.setattr(state, "to", to, raising=False)
    state.absmax = scales.to("meta")
    for _ in range(2):
        assert torch.equal(dequantized(weight, state, torch.float32, compiled=True), expected)
    assert moved == [weight.device]


@pytest.mark.parametrize("shape", [(40, 96), (7, 288), (5, 14), (3, 7), (32, 64)])
@pytest.mark.parametrize("nested", [False, True])
def test_on_a_cpu_blocks_run_across_the_rows_as_they_were_quantized(shape: tuple[int, int], nested: bool) -> None:
    from bitsandbytes import functional
    from bitsandbytes.nn import Linear4bit, Params4bit

    quantization(torch.float32, [])
    weight = 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    packed, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=nested)
    # Blocks of 64 weights one after the other, each stored as the nearest of 16 multiples of its largest.
    blocks = torch.nn.functional.pad(weight.flatten(), (0, -weight.numel() % 64)).view(-1, 64)
    largest = blocks.abs().amax(1, keepdim=True)
    nearest = ((blocks / largest)[..., None] - state.code).abs().argmin(-1)
    expected = (state.code[nearest] * largest).flatten()[: weight.numel()].view(shape)

    layer = Linear4bit(shape[1], shape[0], bias=False, compute_dtype=torch.float32, quant_type="nf4")
    layer.weight = Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=nested)
    layer.to("cpu").train()
    x = torch.randn(4, shape[1], requires_grad=True)
    layer(x).sum().backward()
    found = {
        "ours": dequantized(packed, state, torch.float32, compiled=False),
        "theirs": functional.dequantize_4bit(packed, state),
        "transposed": functional.dequantize_4bit(packed.t(), state).t(),
        "forward": layer(torch.eye(shape[1])).t(),
    }
    # Scales of 8 bits are off by less than a hundredth.
    tolerance = 0.01 * float(largest.max()) if nested else 1e-6
    for name, values in found.items():
        assert float((values - expected).abs().max()) <= tolerance, name
    torch.testing.assert_close(x.grad, expected.sum(0).expand(4, -1), rtol=0, atol=shape[0] * tolerance)
