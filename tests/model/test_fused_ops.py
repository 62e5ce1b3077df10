from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from llmcls.model.fused_ops import (
    add_rms_norm,
    compiler_error,
    dropout,
    dropout_backward,
    gated_activation,
    rms_norm,
    rotary,
    softmax,
    softmax_backward,
)
from llmcls.model.lora_formulas import kept

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler for torch.compile")
COMPILED = [False, pytest.param(True, marks=[needs_compiler, pytest.mark.slow])]
# Each of these compiles anew. What is compiled in float32 differs from what is compiled in 16 bits in its types only.
IN_BOTH = [
    (torch.float32, False),
    (torch.bfloat16, False),
    pytest.param(torch.bfloat16, True, marks=COMPILED[1].marks),
    pytest.param(torch.float32, True, marks=[*COMPILED[1].marks, pytest.mark.long]),
]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain_norm(x: torch.Tensor, weight: torch.Tensor, unit_offset: bool) -> torch.Tensor:
    normed = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
    return (normed * (1.0 + weight.float())).to(x.dtype) if unit_offset else weight * normed.to(x.dtype)


def plain_rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]


def assert_same(fused: Callable[..., torch.Tensor], plain: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> None:
    """The same values and the same gradients of all inputs."""
    results = []
    for function in (fused, plain):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        out = function(*leaves)
        out.backward(random(*out.shape, seed=9).to(out.dtype))
        results.append((out, [leaf.grad for leaf in leaves]))
    (found, found_gradients), (expected, gradients) = results
    tolerance = 1e-5 if expected.dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    for a, b in zip(found_gradients, gradients, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance * max(1.0, float(b.abs().max())), rtol=tolerance)


@pytest.mark.parametrize(
    "dtype, unit_offset, compiled",
    [
        *((dtype, offset, False) for dtype in (torch.float32, torch.bfloat16) for offset in (False, True)),
        pytest.param(torch.float32, False, True, marks=COMPILED[1].marks),
        pytest.param(torch.bfloat16, True, True, marks=COMPILED[1].marks),
        pytest.param(torch.float32, True, True, marks=[*COMPILED[1].marks, pytest.mark.long]),
        pytest.param(torch.bfloat16, False, True, marks=[*COMPILED[1].marks, pytest.mark.long]),
    ],
)
def test_norm_equals_its_formula(unit_offset: bool, dtype: torch.dtype, compiled: bool) -> None:
    x, weight = random(7, 16).to(dtype), (1 + 0.3 * random(16, seed=1)).to(dtype)
    assert_same(
        lambda x, w: rms_norm(x, w, 1e-6, unit_offset, compiled), lambda x, w: plain_norm(x, w, unit_offset), x, weight
    )


@pytest.mark.parametrize(
    "dtype, used, compiled",
    [
        *((dtype, used, False) for dtype in (torch.float32, torch.bfloat16) for used in ("both", "total", "norm")),
        pytest.param(torch.bfloat16, "both", True, marks=COMPILED[1].marks),
        pytest.param(torch.float32, "both", True, marks=[*COMPILED[1].marks, pytest.mark.long]),
    ],
)
def test_a_sum_and_its_norm_equal_their_formulas(used: str, dtype: torch.dtype, compiled: bool) -> None:
    x, y, weight = random(7, 16).to(dtype), random(7, 16, seed=2).to(dtype), (1 + 0.3 * random(16, seed=1)).to(dtype)
    take = {"both": lambda a, b: a + 2 * b, "total": lambda a, _: a, "norm": lambda _, b: b}[used]

    def fused(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        # The weight has a gradient of zero where the norm is not used.
        return take(*add_rms_norm(x, y, w, 1e-6, False, compiled)) + 0 * w

    assert_same(fused, lambda x, y, w: take(x + y, plain_norm(x + y, w, False)) + 0 * w, x, y, weight)
    alone = lambda x, w: take(*add_rms_norm(x, None, w, 1e-6, False, compiled)) + 0 * w  # noqa: E731
    assert_same(alone, lambda x, w: take(x, plain_norm(x, w, False)) + 0 * w, x, weight)


def test_a_sum_of_two_precisions_has_the_wider_one_and_gradients_of_each() -> None:
    x, y = random(7, 16).requires_grad_(), random(7, 16, seed=2).bfloat16().requires_grad_()
    total, normed = add_rms_norm(x, y, torch.ones(16), 1e-6)
    assert total.dtype == normed.dtype == torch.float32
    (total + normed).sum().backward()
    assert (x.grad.dtype, y.grad.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(y.grad, x.grad.bfloat16())


@pytest.mark.parametrize("dtype, compiled", IN_BOTH)
def test_gated_activation_equals_its_formula(dtype: torch.dtype, compiled: bool) -> None:
    gate, up = random(7, 16).to(dtype), random(7, 16, seed=1).to(dtype)
    assert_same(lambda g, u: gated_activation(g, u, "silu", compiled), lambda g, u: F.silu(g) * u, gate, up)
    assert_same(
        lambda g, u: gated_activation(g, u, "gelu_tanh", compiled),
        lambda g, u: F.gelu(g, approximate="tanh") * u,
        gate,
        up,
    )


@pytest.mark.parametrize("compiled", COMPILED)
def test_rotary_equals_its_formula_for_grouped_heads(compiled: bool) -> None:
    angles = random(1, 5, 8, seed=2)
    angles = torch.cat((angles[..., :4], angles[..., :4]), dim=-1)
    cos, sin = angles.cos(), angles.sin()
    # Heads of different numbers, in the memory layout that a projection leaves.
    query, key = random(1, 5, 4, 8).transpose(1, 2), random(1, 5, 2, 8, seed=1).transpose(1, 2)
    assert_same(
        lambda q, k: rotary(q, k, cos, sin, compiled)[0],
        lambda q, k: plain_rotary(q, cos, sin) + 0 * k.sum(),
        query,
        key,
    )
    assert_same(
        lambda q, k: rotary(q, k, cos, sin, compiled)[1],
        lambda q, k: plain_rotary(k, cos, sin) + 0 * q.sum(),
        query,
        key,
    )


@pytest.mark.parametrize("compiled", COMPILED)
def test_softmax_and_its_gradient_equal_torch(compiled: bool) -> None:
    scores = random(2, 5, 6)
    scores[:, 0, 3:] = float("-inf")
    d_weights = random(2, 5, 6, seed=1)
    leaf = scores.clone().requires_grad_()
    expected = torch.softmax(leaf, -1)
    expected.backward(d_weights)
    weights = softmax(scores, compiled)
    d_scores = softmax_backward(weights, d_weights, compiled)
    torch.testing.assert_close(weights, expected.detach(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(d_scores, leaf.grad, atol=1e-6, rtol=1e-5)


@needs_compiler
@pytest.mark.slow
def test_no_length_compiles_again() -> None:
    from torch._dynamo.utils import counters

    graphs = []
    # The first two lengths may compile. That a device compiles everything: tests/cuda/test_fused_ops.py.
    for training in (True, False):
        for tokens in (3, 5, 7, 16, 33, 100):
            x = random(tokens, 16).bfloat16().requires_grad_(training)
            with torch.set_grad_enabled(training):
                for y in (
                    rms_norm(x, torch.ones(16).bfloat16(), 1e-6, True, compiled=True),
                    gated_activation(x, x * 2, "silu", compiled=True),
                ):
                    if training:
                        y.backward(y.detach().clone())
            graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[1] > 0
    assert set(graphs[1:]) == {graphs[1]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.05, 0.5])
@pytest.mark.parametrize("compiled", COMPILED)
def test_dropout_drops_at_its_rate_and_keeps_the_mean(compiled: bool, dtype: torch.dtype, rate: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(500, 333, dtype=dtype)
    dropped, mask, gain = dropout(x, rate, compiled)
    share = float((dropped == 0).float().mean())
    # Five standard deviations of a share of 166,500 draws.
    assert abs(share - rate) < 5 * (rate * (1 - rate) / x.numel()) ** 0.5
    assert float(dropped.max()) * gain == pytest.approx(1 / (1 - rate), rel=1e-6)
    assert torch.equal(dropout_backward(x, mask, rate), dropped)
    # Neighbours share the bits of one number, but not their fate.
    pairs = (dropped[:, :-1] == 0) & (dropped[:, 1:] == 0)
    assert float(pairs.float().mean()) == pytest.approx(rate**2, abs=5 * rate / pairs.numel() ** 0.5)


@pytest.mark.parametrize("compiled", COMPILED)
def test_dropout_is_a_function_of_the_seed(compiled: bool) -> None:
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(dropout(torch.ones(9, 5), 0.5, compiled)[0])
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("compiled", COMPILED)
def test_values_that_were_zero_get_their_gradients(compiled: bool) -> None:
    torch.manual_seed(0)
    dropped, mask, _ = dropout(torch.zeros(50, 7), 0.5, compiled)
    assert not dropped.any()
    assert 100 < int(dropout_backward(torch.ones(50, 7), mask, 0.5).sum()) < 250


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_dropout_keeps_what_the_kernels_of_a_gpu_keep(dtype: torch.dtype) -> None:
    x = random(33, 65).to(dtype)
    dropped, seed, _ = dropout(x, 0.3, compiled=True)
    assert seed.numel() == 1
    assert torch.equal(dropped, torch.where(kept(33, 65, 0.3, int(seed), torch.device("cpu")), x, 0.0))


def test_under_fake_tensors_a_formula_is_one_operation() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    names = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            names.append(func._schema.name)
            return func(*args, **(kwargs or {}))

    with FakeTensorMode(), Names():
        x = torch.empty(4, 8, requires_grad=True)
        out = rms_norm(x, torch.empty(8), 1e-6)
        out.backward(torch.empty(4, 8))
        assert out.shape == (4, 8)
    assert [name for name in names if name.startswith("llmcls::")] == ["llmcls::rms_norm", "llmcls::rms_norm_backward"]


def test_a_compiler_that_fails_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmcls.model import formulas

    def fails(formula: object) -> object:
        raise RuntimeError("no compiler\nand a long trace")

    monkeypatch.setattr(formulas, "_compiled", fails)
    assert compiler_error(torch.device("cpu"), torch.float32) == "no compiler"
