"""The formulas of `llmcls.model.formulas` as Triton kernels, for GPUs.

`torch.compile` makes such kernels too, but each call of them checks again whether they fit, and in a small model the
host then takes longer than the GPU. These are started directly. All arithmetic is in float32; results are rounded once,
to the types that the formulas return.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

from llmcls.model.launch import start

# Values that one program handles at once.
TILE = 2048
# The sizes of a micro-batch, for which no kernel may be compiled again. The other sizes are those of the model, and
# knowing whether they are multiples of 16 lets a kernel read and write 16 bytes at once.
SIZES = ("rows", "tokens")


@triton.jit(do_not_specialize=SIZES)
def _rms_norm_kernel(
    x, y, weight, total, out, scale, rows, eps, width,
    ADD: tl.constexpr, UNIT_OFFSET: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    inside = (row < rows) & (column < width)
    place = row * width + column
    values = tl.load(x + place, mask=inside, other=0.0)
    if ADD:
        added = tl.load(y + place, mask=inside, other=0.0).to(tl.float32)
        # The norm is that of the rounded sum.
        values = (values.to(tl.float32) + added).to(total.dtype.element_ty)
        tl.store(total + place, values, mask=inside)
    wide = values.to(tl.float32)
    factor = 1.0 / tl.sqrt(tl.sum(wide * wide, axis=1, keep_dims=True) / width + eps)
    w = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    normed = wide * factor
    # Without the offset, the weight is applied after rounding.
    result = normed * (1.0 + w) if UNIT_OFFSET else w * normed.to(values.dtype).to(tl.float32)
    tl.store(out + place, result.to(out.dtype.element_ty), mask=inside)
    tl.store(scale + row, factor, mask=row < rows)


@triton.jit(do_not_specialize=SIZES)
def _rms_norm_backward_kernel(
    d_out, d_other, x, weight, scale, d_x, rows, width,
    ADD: tl.constexpr, UNIT_OFFSET: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    inside = (row < rows) & (column < width)
    place = row * width + column
    factor = tl.load(scale + row, mask=row < rows, other=0.0)
    w = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    if UNIT_OFFSET:
        w = w + 1.0
    normed = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) * factor
    d_normed = tl.load(d_out + place, mask=inside, other=0.0).to(tl.float32) * w
    along = tl.sum(d_normed * normed, axis=1, keep_dims=True) / width
    gradient = (d_normed - normed * along) * factor
    if ADD:
        gradient += tl.load(d_other + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(d_x + place, gradient.to(d_x.dtype.element_ty), mask=inside)


@triton.jit
def _tanh(x):
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit
def _gated_activation_kernel(gate, up, out, width, SILU: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    place = tl.program_id(0).to(tl.int64) * width + column
    g = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + place, mask=inside, other=0.0).to(tl.float32)
    if SILU:
        active = g / (1.0 + tl.exp(-g))
    else:
        active = 0.5 * g * (1.0 + _tanh(0.7978845608028654 * (g + 0.044715 * g * g * g)))
    tl.store(out + place, (active * u).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gated_activation_backward_kernel(d_out, gate, up, d_gate, d_up, width, SILU: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    place = tl.program_id(0).to(tl.int64) * width + column
    d = tl.load(d_out + place, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + place, mask=inside, other=0.0).to(tl.float32)
    if SILU:
        gain = 1.0 / (1.0 + tl.exp(-g))
        active = g * gain
        slope = gain * (1.0 + g * (1.0 - gain))
    else:
        t = _tanh(0.7978845608028654 * (g + 0.044715 * g * g * g))
        active = 0.5 * g * (1.0 + t)
        slope = 0.5 * (1.0 + t) + 0.5 * g * (1.0 - t * t) * 0.7978845608028654 * (1.0 + 0.134145 * g * g)
    tl.store(d_gate + place, (d * u * slope).to(d_gate.dtype.element_ty), mask=inside)
    tl.store(d_up + place, (d * active).to(d_up.dtype.element_ty), mask=inside)


@triton.jit
def _rotate_heads(
    x, out, x_head, out_head, first_cos, first_sin, second_cos, second_sin, half, heads,
    HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    head = tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (column < half)
    first = tl.load(x + head * x_head + column, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + head * x_head + half + column, mask=inside, other=0.0).to(tl.float32)
    place = out + head * out_head + column
    tl.store(place, (first * first_cos - second * first_sin).to(out.dtype.element_ty), mask=inside)
    tl.store(place + half, (second * second_cos + first * second_sin).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def _rotary_kernel(
    query, key, cos, sin, out_query, out_key, tokens, half, heads, key_heads,
    query_row, query_head, query_token, key_row, key_head, key_token,
    out_query_row, out_query_head, out_query_token, out_key_row, out_key_head, out_key_token, angle_row, angle_token,
    INVERSE: tl.constexpr, HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0).to(tl.int64)
    row, token = number // tokens, number % tokens
    column = tl.arange(0, HALF)[None, :]
    angle = row * angle_row + token * angle_token + column
    first_cos = tl.load(cos + angle, mask=column < half, other=0.0).to(tl.float32)
    second_cos = tl.load(cos + angle + half, mask=column < half, other=0.0).to(tl.float32)
    first_sin = tl.load(sin + angle, mask=column < half, other=0.0).to(tl.float32)
    second_sin = tl.load(sin + angle + half, mask=column < half, other=0.0).to(tl.float32)
    if INVERSE:
        first_sin, second_sin = -first_sin, -second_sin
    _rotate_heads(
        query + row * query_row + token * query_token, out_query + row * out_query_row + token * out_query_token,
        query_head, out_query_head, first_cos, first_sin, second_cos, second_sin, half, heads, HEADS, HALF,
    )  # fmt: skip
    _rotate_heads(
        key + row * key_row + token * key_token, out_key + row * out_key_row + token * out_key_token,
        key_head, out_key_head, first_cos, first_sin, second_cos, second_sin, half, key_heads, KEY_HEADS, HALF,
    )  # fmt: skip


@triton.jit
def _dequantize_kernel(packed, scales, code, out, pairs, count, PER_SCALE: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pair = tl.load(packed + place, mask=place < pairs, other=0)
    scale = tl.load(scales + place // (PER_SCALE // 2), mask=place < pairs, other=0.0)
    # The upper half of a byte comes first.
    first = tl.load(code + (pair >> 4)) * scale
    second = tl.load(code + (pair & 15)) * scale
    values = tl.reshape(tl.join(first, second), (2 * BLOCK,))
    place = tl.program_id(0) * (2 * BLOCK) + tl.arange(0, 2 * BLOCK)
    tl.store(out + place, values.to(out.dtype.element_ty), mask=place < count)


# Asked for with every kernel.
next_power_of_2 = cache(triton.next_power_of_2)


@cache
def _tile(width: int) -> tuple[int, int, int]:
    """Rows and columns of the tile of a program over whole rows, and its warps."""
    columns = next_power_of_2(width)
    rows = max(1, TILE // columns)
    return rows, columns, 4 if columns <= 4096 else 8 if columns <= 8192 else 16


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, unit_offset: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """See `llmcls.model.fused_ops.rms_norm`; also the factor of each row, float32 [...]."""
    x = x.contiguous()
    return _normed(x, x, x, weight, eps, unit_offset, add=False)


def add_rms_norm(
    x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, eps: float, unit_offset: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The sum of ``x`` and ``y``, and `rms_norm` of it."""
    x, y = x.contiguous(), y.contiguous()
    total = torch.empty_like(x, dtype=torch.promote_types(x.dtype, y.dtype))
    return total, *_normed(x, y, total, weight, eps, unit_offset, add=True)


def _normed(
    x: torch.Tensor, y: torch.Tensor, total: torch.Tensor, weight: torch.Tensor, eps: float, unit_offset: bool,
    add: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Write ``total`` if there is something to add; its norm and the factors."""
    dtype, width = total.dtype, x.shape[-1]
    if not unit_offset and weight.dtype != dtype:
        dtype = torch.promote_types(dtype, weight.dtype)
    out = torch.empty_like(x, dtype=dtype)
    scale = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    count, (rows, columns, warps) = scale.numel(), _tile(width)
    if count:
        start(
            _rms_norm_kernel, (-(-count // rows), 1, 1), (x, y, weight, total, out, scale), (count,), (eps,), (width,),
            (add, unit_offset, rows, columns), warps,
        )  # fmt: skip
    return out, scale


def rms_norm_backward(
    d_out: torch.Tensor, d_x: torch.Tensor | None, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor,
    unit_offset: bool,
) -> torch.Tensor:  # fmt: skip
    """The gradient of the input of `rms_norm`, added to another gradient of it if there is one."""
    d_out, x, scale = d_out.contiguous(), x.contiguous(), scale.contiguous()
    other = d_out if d_x is None else d_x.contiguous()
    gradient = torch.empty_like(x)
    count, (rows, columns, warps) = scale.numel(), _tile(x.shape[-1])
    if count:
        start(
            _rms_norm_backward_kernel, (-(-count // rows), 1, 1), (d_out, other, x, weight, scale, gradient), (count,),
            (), (x.shape[-1],), (d_x is not None, unit_offset, rows, columns), warps,
        )  # fmt: skip
    return gradient


def gated_activation(gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    """See `llmcls.model.fused_ops.gated_activation`."""
    gate, up = gate.contiguous(), up.contiguous()
    out, width = torch.empty_like(gate), gate.shape[-1]
    if gate.numel():
        block = min(TILE, next_power_of_2(width))
        grid = (gate.numel() // width, triton.cdiv(width, block), 1)
        start(_gated_activation_kernel, grid, (gate, up, out), (), (), (width,), (activation == "silu", block))
    return out


def gated_activation_backward(
    d_out: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, activation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of both inputs of `gated_activation`."""
    d_out, gate, up = d_out.contiguous(), gate.contiguous(), up.contiguous()
    d_gate, d_up, width = torch.empty_like(gate), torch.empty_like(up), gate.shape[-1]
    if gate.numel():
        block = min(TILE, next_power_of_2(width))
        grid = (gate.numel() // width, triton.cdiv(width, block), 1)
        tensors = d_out, gate, up, d_gate, d_up
        start(_gated_activation_backward_kernel, grid, tensors, (), (), (width,), (activation == "silu", block))
    return d_gate, d_up


def rotary(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, inverse: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `llmcls.model.fused_ops.rotary`; ``inverse`` rotates by the opposite angle."""
    query, key = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key))
    cos, sin = cos.contiguous(), sin.contiguous()
    rows, heads, tokens, width = query.shape
    # In the layout of the input: token after token, which the attention that comes next reads.
    out_query, out_key = torch.empty_like(query), torch.empty_like(key)
    if rows * tokens:
        sizes = (
            width // 2, heads, key.shape[1], *query.stride()[:3], *key.stride()[:3], *out_query.stride()[:3],
            *out_key.stride()[:3], cos.stride(0) if cos.shape[0] > 1 else 0, cos.stride(1),
        )  # fmt: skip
        tiles = (next_power_of_2(heads), next_power_of_2(max(1, key.shape[1])), next_power_of_2(width // 2))
        start(
            _rotary_kernel, (rows * tokens, 1, 1), (query, key, cos, sin, out_query, out_key), (tokens,), (), sizes,
            (inverse, *tiles),
        )  # fmt: skip
    return out_query, out_key


def dequantize(
    packed: torch.Tensor,
    scales: torch.Tensor,
    code: torch.Tensor,
    per_scale: int,
    shape: torch.Size,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Weights of 4 bits as numbers.

    Parameters
    ----------
    packed : tensor of any type
        Two weights a byte, one after the other.
    scales : float32 [weights / per_scale]
    code : float32 [16]
        What the values of 4 bits stand for, before they are multiplied by the scale.
    per_scale : int
        Weights that share a scale, a multiple of 2.
    shape : torch.Size
    dtype : torch.dtype
    """
    out = torch.empty(shape, dtype=dtype, device=packed.device)
    if count := out.numel():
        grid = (triton.cdiv(count, 2 * TILE), 1, 1)
        tensors = packed.contiguous().view(-1).view(torch.uint8), scales, code, out
        start(_dequantize_kernel, grid, tensors, (), (), (-(-count // 2), count), (per_scale, TILE))
    return out


KERNELS: dict[str, Any] = {
    "rms_norm": rms_norm, "add_rms_norm": add_rms_norm, "rms_norm_backward": rms_norm_backward,
    "gated_activation": gated_activation, "gated_activation_backward": gated_activation_backward, "rotary": rotary,
    "dequantize": dequantize,
}  # fmt: skip
