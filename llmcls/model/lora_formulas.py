"""LoRA with dropout for up to three layers that read the same input, as formulas of whole tensors.

With inputs ``x`` [rows, width], dropout ``m`` of their values, the matrices A of all layers as one matrix ``a``
[layers x rank, width], matrices ``b_i`` [columns_i, rank], a factor ``f`` (the scaling of the adapters divided by the
share of values that is kept), and the loss ``L`` (Hu et al. 2021, "LoRA", equation 3):

    low = f (m x) a'      out_i = low_i b_i'
    d_low_i = f (dL/dout_i) b_i      dL/db_i = (dL/dout_i)' low_i
    dL/da = d_low' (m x)      dL/dx = m (d_low a)

where ``low_i`` are the columns of ``low`` that belong to layer i. Dropout needs no mask in memory: whether a value is
kept is a function of the seed and its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

# The multipliers of the hash "lowbias32" of C. Wellons ("Prospecting for Hash Functions", 2018), and the golden ratio,
# all of 32 bits.
MIX = (0x7FEB352D, 0x846CA68B, 0x9E3779B1)
WORD, HALF_SEED = 2**32 - 1, 2**31


def draw_seeds(like: torch.Tensor, count: int) -> list[int]:
    """Seeds for `kept` from torch's generator on the CPU, for which no device waits; 0 if ``like`` has no values."""
    if isinstance(like, FakeTensor):
        return [0] * count
    return torch.empty(count, dtype=torch.int64).random_(HALF_SEED**2).tolist()


def halves_of(seed: int) -> tuple[int, int]:
    """The seed as two numbers below 2^31."""
    return seed % HALF_SEED, seed // HALF_SEED


def threshold_of(rate: float) -> int:
    """The smallest of the numbers from -2^31 to 2^31 - 1 at which a value is kept."""
    return min(round(rate * 2**32), WORD) - 2**31


def kept(rows: int, width: int, rate: float, seed: int, device: torch.device) -> torch.Tensor:
    """Which values of a matrix dropout keeps; bool [rows, width].

    The place of a value and the seed are mixed by multiplications and shifts of 32 bits. The last multiplication makes
    the upper bits depend on all bits before it, and as a signed number the result is compared with the rate.
    """
    return _kept(rows, width, threshold_of(rate), *halves_of(seed), device)


def _kept(rows: int, width: int, threshold: int, first: int, second: int, device: torch.device) -> torch.Tensor:
    # Products of signed integers lose the same upper bits as those of unsigned ones, but shifts copy the sign.
    mix = [factor - 2**32 if factor >= 2**31 else factor for factor in MIX]
    number = torch.arange(rows * width, dtype=torch.int32, device=device).view(rows, width)
    number = number * mix[2] + first
    number = (number ^ ((number >> 16) & (WORD >> 16)) ^ second) * mix[0]
    number = (number ^ ((number >> 15) & (WORD >> 15))) * mix[1]
    return number >= threshold


def dropout(x: torch.Tensor, threshold: int, first: int, second: int) -> torch.Tensor:
    """``x`` where it is `kept`, else 0.

    Parameters
    ----------
    x : float [rows, width]
    threshold : int
        From `threshold_of`.
    first, second : int
        From `halves_of`.
    """
    return torch.where(_kept(x.shape[0], x.shape[1], threshold, first, second, x.device), x, 0.0)


def _dropped(x: torch.Tensor, rate: float, seed: int) -> torch.Tensor:
    if isinstance(x, FakeTensor):
        # Of the same shape, in a trace that need not follow how values are drawn.
        return x
    return dropout(x, threshold_of(rate), *halves_of(seed)) if rate else x


def lora_down(x: torch.Tensor, a: torch.Tensor, factor: float, rate: float, seed: int) -> torch.Tensor:
    """``low`` of the formulas above.

    Parameters
    ----------
    x : float16 or bfloat16 [rows, width]
    a : float [layers x rank, width], of the same dtype
    factor : float
    rate : float
        Probability of dropping a value.
    seed : int
        From `draw_seeds`.

    Returns
    -------
    float [rows, layers x rank], of the same dtype
    """
    return ((_dropped(x, rate, seed) @ a.t()).float() * factor).to(x.dtype)


def lora_up(low: torch.Tensor, b: list[torch.Tensor]) -> list[torch.Tensor]:
    """``out`` of the formulas above; a list of float [rows, columns_i], of the dtype of ``low``."""
    return [part @ matrix.t() for part, matrix in zip(low.chunk(len(b), dim=1), b, strict=True)]


def lora_down_gradient(d_outs: list[torch.Tensor], b: list[torch.Tensor], factor: float) -> torch.Tensor:
    """``d_low`` of the formulas above, from the gradients of the outputs [rows, columns_i]; of the shape of ``low``."""
    parts = [(d_out @ matrix).float() * factor for d_out, matrix in zip(d_outs, b, strict=True)]
    return torch.cat(parts, dim=1).to(d_outs[0].dtype)


def lora_input_gradient(d_low: torch.Tensor, a: torch.Tensor, rate: float, seed: int) -> torch.Tensor:
    """The gradient of ``x`` through the adapters; float [rows, width], of the dtype of ``d_low``."""
    return _dropped(d_low @ a, rate, seed)


def lora_matrix_gradients(
    d_outs: list[torch.Tensor], low: torch.Tensor, x: torch.Tensor, d_low: torch.Tensor, rate: float, seed: int
) -> list[torch.Tensor]:
    """The gradients of ``a`` [layers x rank, width] and of all ``b_i`` [columns_i, rank], in float32."""
    parts = low.float().chunk(len(d_outs), dim=1)
    d_a = d_low.float().t() @ _dropped(x, rate, seed).float()
    return [d_a, *(d_out.float().t() @ part for d_out, part in zip(d_outs, parts, strict=True))]


# Formula, the arguments of its operation, and the types that it returns; see `llmcls.model.formulas`.
LORA_FORMULAS: dict[str, tuple[Callable[..., Any], str]] = {
    "lora_down": (lora_down, "(Tensor x, Tensor a, float factor, float rate, int seed, bool compiled) -> Tensor"),
    "dropout": (dropout, "(Tensor x, int threshold, int first, int second, bool compiled) -> Tensor"),
    "lora_up": (lora_up, "(Tensor low, Tensor[] b, bool compiled) -> Tensor[]"),
    "lora_down_gradient": (
        lora_down_gradient,
        "(Tensor[] d_outs, Tensor[] b, float factor, bool compiled) -> Tensor",
    ),
    "lora_input_gradient": (
        lora_input_gradient,
        "(Tensor d_low, Tensor a, float rate, int seed, bool compiled) -> Tensor",
    ),
    "lora_matrix_gradients": (
        lora_matrix_gradients,
        "(Tensor[] d_outs, Tensor low, Tensor x, Tensor d_low, float rate, int seed, bool compiled) -> Tensor[]",
    ),
}
