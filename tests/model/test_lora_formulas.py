from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from llmcls.model.lora_formulas import (
    draw_seeds,
    kept,
    lora_down,
    lora_down_gradient,
    lora_input_gradient,
    lora_matrix_gradients,
    lora_up,
)

CPU = torch.device("cpu")
ROWS, WIDTH, RANK, COLUMNS, FACTOR, SEED = 30, 24, 3, (16, 8), 2.0, 2**31 * 77 + 5


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_gradients_are_those_of_the_forward_formulas(rate: float) -> None:
    x, a = random(ROWS, WIDTH).requires_grad_(), random(len(COLUMNS) * RANK, WIDTH, seed=1).requires_grad_()
    b = [random(n, RANK, seed=2 + n).requires_grad_() for n in COLUMNS]
    mask = kept(ROWS, WIDTH, rate, SEED, CPU) if rate else torch.ones(ROWS, WIDTH)
    # Of the definition, in double precision.
    low = FACTOR * (x * mask) @ a.t()
    outs = [part @ matrix.t() for part, matrix in zip(low.chunk(2, dim=1), b, strict=True)]
    d_outs = [random(*out.shape, seed=9 + i) for i, out in enumerate(outs)]
    d_x, d_a, *d_b = torch.autograd.grad(outs, [x, a, *b], d_outs)
    with torch.no_grad():
        found_low = lora_down(x, a, FACTOR, rate, SEED)
        d_low = lora_down_gradient(d_outs, b, FACTOR)
        found = [
            *lora_up(found_low, b),
            lora_input_gradient(d_low, a, rate, SEED),
            *lora_matrix_gradients(d_outs, found_low, x, d_low, rate, SEED),
        ]
    for one, expected in zip(found, [*outs, d_x, d_a, *d_b], strict=True):
        # Sums are in float32.
        torch.testing.assert_close(one.double(), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_values_are_kept_at_their_rate_everywhere_and_independently(rate: float) -> None:
    rows, width = 2000, 512
    mask = kept(rows, width, rate, SEED, CPU).double()
    spread = (rate * (1 - rate)) ** 0.5
    # Five standard deviations of a mean over all, and six of the most extreme of some hundreds.
    assert abs(float(mask.mean()) - (1 - rate)) < 5 * spread / (rows * width) ** 0.5
    assert float((mask.mean(0) - (1 - rate)).abs().max()) < 6 * spread / rows**0.5
    assert float((mask.mean(1) - (1 - rate)).abs().max()) < 6 * spread / width**0.5
    centred = (mask - (1 - rate)) / spread
    others = [kept(rows, width, rate, seed, CPU).double() for seed in (SEED + 1, SEED + 2**31, SEED ^ (1 << 40))]
    pairs = [
        *((centred[:, step:], centred[:, :-step]) for step in (1, 2, 3, 16, 64)),
        *((centred[step:], centred[:-step]) for step in (1, 2, 64)),
        *((centred, (other - (1 - rate)) / spread) for other in others),
    ]
    for left, right in pairs:
        assert abs(float((left * right).mean())) < 5 / left.numel() ** 0.5


def test_a_rate_of_one_keeps_almost_nothing() -> None:
    assert int(kept(100, 100, 1.0, SEED, CPU).sum()) == 0


def test_seeds_come_from_the_generator_of_torch_and_a_trace_draws_none() -> None:
    x = torch.empty(2, 2)
    torch.manual_seed(3)
    seeds = [*draw_seeds(x, 1), *draw_seeds(x, 3)]
    torch.manual_seed(3)
    # However many are drawn at once.
    assert draw_seeds(x, 4) == seeds
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 2**62 for seed in seeds)
    before = torch.get_rng_state()
    with FakeTensorMode():
        assert draw_seeds(torch.empty(2, 2), 2) == [0, 0]
    assert torch.equal(torch.get_rng_state(), before)
