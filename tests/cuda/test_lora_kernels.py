"""The kernels of LoRA on a GPU, against their formulas in float32 on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llmcls.model.formulas import compute
from llmcls.model.lora_formulas import LORA_FORMULAS, kept
from tests.cuda import DEVICE, NEEDS_GPU
from tests.cuda.helpers import compiled_kernels, off, random

pytestmark = NEEDS_GPU

# Rows of one program, of several, and such that the last one is not full.
SIZES = (1, 64, 1000, 4097)
WIDTH, COLUMNS = 336, (512, 128, 264)
SEED = 2**31 * 12345 + 6789
TOLERANCES = {torch.bfloat16: 1e-2, torch.float16: 2e-3}


def arguments_of(layers: int, rank: int, rows: int, rate: float, dtype: torch.dtype) -> dict[str, tuple[Any, ...]]:
    """The arguments of each formula, on the CPU in float32, rounded to the precision of the computation."""

    def numbers(seed: int, *shape: int, scale: float = 1.0) -> torch.Tensor:
        return (scale * random(*shape, seed=seed)).to(dtype).float()

    columns, ranks = COLUMNS[:layers], layers * rank
    x, a = numbers(0, rows, WIDTH), numbers(1, ranks, WIDTH, scale=WIDTH**-0.5)
    low, d_low = numbers(2, rows, ranks), numbers(3, rows, ranks)
    b = [numbers(10 + i, n, rank) for i, n in enumerate(columns)]
    d_outs = [numbers(20 + i, rows, n) for i, n in enumerate(columns)]
    return {
        "lora_down": (x, a, 2.0, rate, SEED),
        "lora_up": (low, b),
        "lora_down_gradient": (d_outs, b, 2.0),
        "lora_input_gradient": (d_low, a, rate, SEED),
        "lora_matrix_gradients": (d_outs, low, x, d_low, rate, SEED),
    }


def on_gpu(value: Any, dtype: torch.dtype) -> Any:
    """An argument on the GPU; tensors in this precision."""
    if isinstance(value, list):
        return [on_gpu(v, dtype) for v in value]
    return value.to(DEVICE, dtype) if isinstance(value, torch.Tensor) else value


def outputs(name: str, arguments: tuple[Any, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    found = compute(name, *(on_gpu(v, dtype) for v in arguments), compiled=True)
    return found if isinstance(found, list) else [found]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("layers, rank", [(1, 8), (2, 8), (3, 8), (3, 20), (2, 64), (1, 1)])
def test_every_kernel_gives_what_its_formula_gives_at_every_size(
    layers: int, rank: int, rate: float, dtype: torch.dtype
) -> None:
    for rows in SIZES:
        for name, arguments in arguments_of(layers, rank, rows, rate, dtype).items():
            expected = LORA_FORMULAS[name][0](*arguments)
            expected = expected if isinstance(expected, list) else [expected]
            distances = [off(a, b) for a, b in zip(outputs(name, arguments, dtype), expected, strict=True)]
            assert all(distance <= TOLERANCES[dtype] for distance in distances), (name, rows, distances)


def test_all_kernels_of_a_step_drop_the_same_values() -> None:
    arguments = arguments_of(1, 8, 1000, 0.3, torch.float16)
    (gradient,) = outputs("lora_input_gradient", arguments["lora_input_gradient"], torch.float16)
    assert torch.equal(gradient.cpu() != 0, kept(1000, WIDTH, 0.3, SEED, torch.device("cpu")))
    # A diagonal, with matrices of ones: what comes out of a row or a column is whether its value is kept.
    x, ones = torch.eye(WIDTH), torch.ones(1, WIDTH)
    diagonal = kept(WIDTH, WIDTH, 0.3, SEED, torch.device("cpu")).diagonal()
    (low,) = outputs("lora_down", (x, ones, 1.0, 0.3, SEED), torch.float16)
    assert torch.equal(low[:, 0].cpu() != 0, diagonal)
    d_a, _ = outputs("lora_matrix_gradients", ([ones.t()], ones.t(), x, ones.t(), 0.3, SEED), torch.float16)
    assert torch.equal(d_a[0].cpu() != 0, diagonal)


def test_no_size_and_no_seed_compiles_again_and_results_repeat_to_the_last_bit() -> None:
    def run(rows: int, seed: int) -> list[torch.Tensor]:
        found = []
        for name, arguments in arguments_of(2, 8, rows, 0.1, torch.bfloat16).items():
            seeded = isinstance(arguments[-1], int)
            given = (*arguments[:-1], seed) if seeded else arguments
            found += outputs(name, given, torch.bfloat16)
        return found

    first = run(100, 1)
    before = compiled_kernels()
    for rows, seed in ((1, 16), (16, 2**40), (1000, 2**61), (4096, 1)):
        once, again = run(rows, seed), run(rows, seed)
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert compiled_kernels() == before
    assert all(torch.equal(a, b) for a, b in zip(first, run(100, 1), strict=True))
