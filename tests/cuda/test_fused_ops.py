"""The kernels of the fused formulas on a GPU, against the formulas in float32 on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from llmcls.model.fused_ops import (
    ACTIVATIONS,
    add_rms_norm,
    compiler_error,
    dropout,
    dropout_backward,
    gated_activation,
    rms_norm,
    rotary,
)
from tests.cuda import DEVICE, NEEDS_GPU
from tests.cuda.helpers import compiled_kernels, off, random

pytestmark = NEEDS_GPU

# A single token is a case of its own for a compiler, as are multiples of 16: neither must need a kernel of its own.
SIZES = (1, 3, 64, 1000, 4097)
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Case:
    """A fused operation.

    Attributes
    ----------
    inputs : callable
        From a number of tokens to its inputs, float32 on the CPU; the first two have gradients.
    run : callable
        From the inputs and whether to compile to its output or outputs.
    """

    inputs: Callable[[int], list[torch.Tensor]]
    run: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]


def heads_of(tokens: int, heads: int, seed: int) -> torch.Tensor:
    """[1, heads, tokens, 32], in the memory layout that a projection leaves."""
    return random(1, tokens, heads, 32, seed=seed).transpose(1, 2)


def rotation(tokens: int) -> list[torch.Tensor]:
    """Query, key, cosine and sine."""
    angles = random(1, tokens, 16, seed=2).repeat(1, 1, 2)
    return [heads_of(tokens, 6, seed=0), heads_of(tokens, 2, seed=1), angles.cos(), angles.sin()]


CASES: dict[str, Case] = {
    "norm": Case(
        lambda n: [random(1, n, 96), 1 + 0.3 * random(96, seed=1)], lambda x, w, c: rms_norm(x, w, 1e-6, False, c)
    ),
    "norm with offset": Case(
        lambda n: [random(1, n, 96), 0.3 * random(96, seed=1)], lambda x, w, c: rms_norm(x, w, 1e-6, True, c)
    ),
    "norm of heads": Case(
        lambda n: [random(1, n, 6, 32), 1 + 0.3 * random(32, seed=1)], lambda x, w, c: rms_norm(x, w, 1e-6, False, c)
    ),
    "sum and norm": Case(
        lambda n: [random(1, n, 96), random(1, n, 96, seed=1), 1 + 0.3 * random(96, seed=2)],
        lambda x, y, w, c: add_rms_norm(x, y, w, 1e-6, False, c),
    ),
    **{
        activation: Case(
            lambda n: [random(1, n, 160), random(1, n, 160, seed=1)],
            lambda gate, up, c, kind=activation: gated_activation(gate, up, kind, c),
        )
        for activation in ACTIVATIONS
    },
    "rotary": Case(rotation, rotary),
}


def values_and_gradients(case: Case, inputs: list[torch.Tensor], compiled: bool) -> list[torch.Tensor]:
    leaves = [x.clone().requires_grad_(i < 2) for i, x in enumerate(inputs)]
    out = case.run(*leaves, compiled)
    outs = out if isinstance(out, tuple) else (out,)
    # The same numbers for every precision.
    d_outs = [random(*o.shape, seed=9 + i).bfloat16().to(o) for i, o in enumerate(outs)]
    return [*outs, *torch.autograd.grad(outs, leaves[:2], d_outs)]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "dtype, others", [(torch.float32,) * 2, (torch.bfloat16,) * 2, (torch.bfloat16, torch.float32)],
    ids=["float32", "bf16", "bf16 and float32"],
)  # fmt: skip
def test_a_compiled_formula_is_right_at_every_length_and_compiles_for_the_first_one_only(
    name: str, dtype: torch.dtype, others: torch.dtype
) -> None:
    if dtype != others and name in ACTIVATIONS:
        pytest.skip("both inputs come from projections of the same precision")
    case, counts = CASES[name], [compiled_kernels()]
    for tokens in SIZES:
        inputs = case.inputs(tokens)
        # What is not a projection, a weight or an angle, may be wider: autocast leaves it in float32.
        narrow = 2 if name == "rotary" else 1 if dtype != others else len(inputs)
        inputs = [x.to(dtype if i < narrow else others) for i, x in enumerate(inputs)]
        found = values_and_gradients(case, [x.to(DEVICE) for x in inputs], compiled=True)
        expected = values_and_gradients(case, [x.float() for x in inputs], compiled=False)
        assert all(tensor.device.type == DEVICE.type for tensor in found)
        distances = [off(a, b) for a, b in zip(found, expected, strict=True)]
        assert all(distance <= TOLERANCES[dtype] for distance in distances), (tokens, distances)
        counts.append(compiled_kernels())
    # Forward and backward, for all lengths.
    assert counts[1] - counts[0] <= 2
    assert counts[1:] == [counts[1]] * len(SIZES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_trial_of_the_compiler_succeeds_and_no_length_compiles_again(dtype: torch.dtype) -> None:
    assert compiler_error(DEVICE, dtype) is None
    before = compiled_kernels()
    for training in (True, False):
        for tokens in (7, 16, 33, 100, 4097):
            x = random(1, 4, tokens, 8).to(DEVICE, dtype).requires_grad_(training)
            with torch.set_grad_enabled(training):
                for y in (
                    rms_norm(x, torch.ones(8, device=DEVICE, dtype=dtype), 1e-6, False, compiled=True),
                    gated_activation(x, x * 2, "silu", compiled=True),
                ):
                    if training:
                        y.backward(y.detach().clone())
    assert compiled_kernels() == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_dropout_drops_at_its_rate_keeps_the_mean_and_has_one_mask_in_both_directions(
    dtype: torch.dtype, rate: float
) -> None:
    torch.manual_seed(0)
    x = torch.ones(500, 336, device=DEVICE, dtype=dtype)
    dropped, mask, gain = dropout(x, rate, compiled=True)
    share = float((dropped == 0).float().mean())
    # Five standard deviations of a share of 168,000 draws.
    assert abs(share - rate) < 5 * (rate * (1 - rate) / x.numel()) ** 0.5
    assert float(dropped.max()) * gain == pytest.approx(1 / (1 - rate), rel=5e-3)
    assert torch.equal(dropout_backward(x, mask, rate), dropped)
    torch.manual_seed(0)
    assert torch.equal(dropout(x, rate, compiled=True)[0], dropped)
    assert not torch.equal(dropout(x, rate)[0], dropped)
