from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from llmcls.model import fused_lora, lora_products
from llmcls.model.fused_lora import lora_linear, project
from llmcls.model.lora_formulas import LORA_FORMULAS

WIDTH = 24


class Block(nn.Module):
    """Three layers that read the same input, one of them with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, 16, bias=False), nn.Linear(WIDTH, 8)
        self.three = nn.Linear(WIDTH, WIDTH, bias=False)

    def layers(self) -> list[Any]:
        return [self.one, self.two, self.three]


def adapted(dropout: float = 0.0, four_bit: bool = False, **more: Any) -> Block:
    torch.manual_seed(0)
    block = Block()
    if four_bit:
        from bitsandbytes.nn import Linear4bit, Params4bit

        for name, layer in list(block.named_children()):
            small = Linear4bit(
                layer.in_features, layer.out_features, layer.bias is not None, torch.float32, quant_type="nf4"
            )
            small.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
            small.bias = layer.bias
            setattr(block, name, small.to("cpu"))
    config = LoraConfig(r=3, lora_alpha=6, lora_dropout=dropout, target_modules=["one", "two", "three"], **more)
    model = get_peft_model(block, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return model.get_base_model()


def outputs_and_gradients(block: Block, fused: bool, dtype: torch.dtype) -> list[torch.Tensor]:
    block.zero_grad()
    x = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        outputs = project(block.layers(), x) if fused else [layer(x) for layer in block.layers()]
    sum((out.float() * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum() for out in outputs).backward()
    trained = [p.grad.clone() for p in block.parameters() if p.requires_grad]
    assert len(trained) == 6
    return [*(out.detach().float() for out in outputs), x.grad.float(), *trained]


@pytest.mark.parametrize("four_bit", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_outputs_and_gradients_are_those_of_peft(dtype: torch.dtype, tolerance: float, four_bit: bool) -> None:
    block = adapted(four_bit=four_bit)
    assert all(lora_linear(layer) is not None for layer in block.layers())
    found, expected = (outputs_and_gradients(block, fused, dtype) for fused in (True, False))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert float((a - b).abs().max()) <= tolerance * float(b.abs().max())


def test_one_mask_serves_all_layers_of_an_input() -> None:
    block = adapted(dropout=0.5).train()
    x = torch.eye(WIDTH)
    torch.manual_seed(3)
    low = [out - layer.base_layer(x) for out, layer in zip(project(block.layers(), x), block.layers(), strict=True)]
    # Row i shows input i alone: where it was dropped, it is missing from every layer.
    dropped = [out.abs().amax(1) < 1e-6 for out in low]
    assert 0 < int(dropped[0].sum()) < WIDTH
    assert all(torch.equal(dropped[0], other) for other in dropped[1:])
    kept = ~dropped[0]
    full = block.one.lora_B["default"].weight @ block.one.lora_A["default"].weight * 2.0
    torch.testing.assert_close(low[0][kept], 2 * full.t()[kept], atol=1e-5, rtol=1e-5)


def test_with_dropout_gradients_are_those_of_the_masked_function() -> None:
    block = adapted(dropout=0.3).train()
    x = torch.randn(4, WIDTH, dtype=torch.float32, requires_grad=True)

    def loss(value: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(5)
        return sum(out.sin().sum() for out in project(block.layers(), value))  # type: ignore[return-value]

    direction = torch.randn_like(x)
    (gradient,) = torch.autograd.grad(loss(x), x)
    with torch.no_grad():
        step = 1e-2
        numeric = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    assert float(numeric) == pytest.approx(float((gradient * direction).sum()), rel=1e-2)


@pytest.mark.parametrize("more", [{"use_dora": True}, {"lora_bias": True}])
def test_other_adapters_are_left_to_peft(more: dict[str, Any]) -> None:
    block = adapted(**more)
    assert all(lora_linear(layer) is None for layer in block.layers() if layer is not block.one or "use_dora" in more)
    x = torch.randn(3, WIDTH)
    if "use_dora" in more:
        for out, layer in zip(project(block.layers(), x), block.layers(), strict=True):
            torch.testing.assert_close(out, layer(x))


def test_a_merged_or_disabled_adapter_is_left_to_peft() -> None:
    block = adapted()
    block.one.merge()
    assert lora_linear(block.one) is None
    block.one.unmerge()
    assert lora_linear(block.one) is not None
    block.one.enable_adapters(False)
    assert lora_linear(block.one) is None


def test_an_adapter_that_replaces_one_of_its_name_is_used() -> None:
    block = adapted()
    first = lora_linear(block.one)
    block.one.delete_adapter("default")
    block.one.update_layer("default", r=2, lora_alpha=2, config=LoraConfig(r=2), inference_mode=False)
    block.one.set_adapter("default")
    second = lora_linear(block.one)
    assert first is not None
    assert second is not None
    assert second.a is block.one.lora_A["default"].weight
    assert second.a is not first.a


def test_the_input_is_kept_once_for_the_backward_pass() -> None:
    block, kept = adapted(dropout=0.1).train(), []
    x = torch.randn(64, WIDTH, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        project(block.layers(), x)
    # The dropped input and its mask; everything else is of the size of the rank.
    assert sorted(kept)[-2:] == [64 * WIDTH] * 2
    assert max(sorted(kept)[:-2]) <= 64 * 9


@pytest.fixture
def kernels_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Here counts as a GPU, and the kernels are their formulas; which of them were called."""
    called: list[str] = []

    def formula(name: str, *arguments: Any, compiled: bool) -> Any:
        assert compiled
        called.append(name)
        return LORA_FORMULAS[name][0](*arguments)

    monkeypatch.setattr(fused_lora, "device_kind", lambda _: "cuda")
    monkeypatch.setattr(lora_products, "compute", formula)
    return called


def run(block: Block, x: torch.Tensor, layers: list[Any] | None = None) -> list[torch.Tensor]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return project(layers or block.layers(), x, compiled=True)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_with_kernels_outputs_and_gradients_are_near_those_of_peft_in_float32(
    kernels_of_a_gpu: list[str], count: int
) -> None:
    block = adapted()
    layers, x = block.layers()[:count], torch.randn(2, 5, WIDTH).bfloat16().float().requires_grad_()
    results = []
    for fused in (True, False):
        block.zero_grad()
        x.grad = None
        outs = run(block, x, layers) if fused else [layer(x) for layer in layers]
        assert all(out.dtype == (torch.bfloat16 if fused else torch.float32) for out in outs)
        sum((out.float() * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum() for out in outs).backward()
        trained = [p.grad.clone() for p in block.parameters() if p.grad is not None]
        assert len(trained) == 2 * count
        results.append([*(out.detach().float() for out in outs), x.grad, *trained])
    assert len(kernels_of_a_gpu) == 5
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype
        assert float((a - b).abs().max()) <= 2e-2 * float(b.abs().max())


@pytest.mark.parametrize("argument", ["input", "A", "B"])
def test_with_kernels_the_backward_pass_has_the_mask_of_the_forward_pass(
    kernels_of_a_gpu: list[str], argument: str
) -> None:
    block = adapted(dropout=0.5).train()
    x = torch.randn(40, WIDTH).requires_grad_()
    moved = {"input": x, "A": block.two.lora_A["default"].weight, "B": block.two.lora_B["default"].weight}[argument]

    def loss() -> torch.Tensor:
        torch.manual_seed(5)
        outs = run(block, x)
        return sum((out.float() * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum() for out in outs)  # type: ignore[return-value]

    before = loss()
    (gradient,) = torch.autograd.grad(before, moved)
    with torch.no_grad():
        # With its mask fixed by the seed, the function is linear in each of these.
        step = gradient * float(moved.norm() / gradient.norm())
        expected = float((gradient * step).sum())
        moved += step
        assert float(loss() - before) == pytest.approx(expected, rel=3e-2)


def test_kernels_are_for_few_layers_of_one_rank_and_one_factor_in_16_bits(kernels_of_a_gpu: list[str]) -> None:
    block, x = adapted(), torch.randn(3, WIDTH)
    project(block.layers(), x, compiled=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        project(block.layers(), x, compiled=False)
    run(block, x, block.layers() * 2)
    run(adapted(rank_pattern={"two": 4}), x)
    run(adapted(alpha_pattern={"two": 4}), x)
    run(adapted(rank_pattern={name: 60 for name in ("one", "two", "three")}), x)
    assert kernels_of_a_gpu == []
    run(block, x)
    assert kernels_of_a_gpu == ["lora_down", "lora_up"]
