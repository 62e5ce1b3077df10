"""The formulas of `llmcls.model.lora_formulas` as Triton kernels, for GPUs.

A LoRA adapter adds little arithmetic, but as separate operations it reads and writes the large tensors of a layer many
times, and the host starts dozens of operations for each layer. Here each formula is one kernel for up to three layers.
Sums are in float32, and none depends on the order in which programs run, so results repeat to the last bit.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

from llmcls.model.launch import start
from llmcls.model.lora_formulas import MIX, halves_of, threshold_of
from llmcls.model.triton_kernels import SIZES, next_power_of_2

# What changes from step to step must not compile a kernel again.
VARYING = (*SIZES, "seed", "more_seed", "threshold")
FIRST, SECOND, LAST = (tl.constexpr(number) for number in MIX)


@triton.jit
def _kept(row, column, width, seed, more_seed, threshold):
    """`llmcls.model.lora_formulas.kept` at some places of a matrix."""
    # Only the sum is computed for each place, the products for each row and each column.
    number = row.to(tl.uint32) * (width.to(tl.uint32) * LAST) + seed.to(tl.uint32) + column.to(tl.uint32) * LAST
    number = (number ^ (number >> 16) ^ more_seed.to(tl.uint32)) * FIRST
    number = (number ^ (number >> 15)) * SECOND
    return number.to(tl.int32, bitcast=True) >= threshold


@triton.jit
def _load(x, row, column, rows, width):
    """A tile of a matrix [rows, width], with zeros outside."""
    return tl.load(x + row.to(tl.int64) * width + column, mask=(row < rows) & (column < width), other=0.0)


@triton.jit
def _store(x, row, column, rows, width, values):
    place = x + row.to(tl.int64) * width + column
    tl.store(place, values.to(x.dtype.element_ty), mask=(row < rows) & (column < width))


@triton.jit(do_not_specialize=VARYING)
def _down_kernel(
    x, a, low, rows, seed, more_seed, threshold, factor, width,
    RANK: tl.constexpr, DROP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    across = tl.arange(0, RANKS)[None, :]
    total = tl.zeros((ROWS, RANKS), tl.float32)
    for begin in range(0, width, COLUMNS):
        column = begin + tl.arange(0, COLUMNS)
        values = _load(x, row, column[None, :], rows, width)
        if DROP:
            values = tl.where(_kept(row, column[None, :], width, seed, more_seed, threshold), values, 0.0)
        matrix = tl.load(
            a + across * width + column[:, None], mask=(across < RANK) & (column[:, None] < width), other=0.0
        )
        total = tl.dot(values, matrix, total)
    _store(low, row, across, rows, RANK, total * factor)


@triton.jit(do_not_specialize=SIZES)
def _up_kernel(
    low, b0, b1, b2, out0, out1, out2, rows, columns0, columns1, columns2,
    COUNT: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    block, first, second = tl.program_id(1), tl.cdiv(columns0, COLUMNS), tl.cdiv(columns1, COLUMNS)
    layer, b, out, columns = 0, b0, out0, columns0
    if COUNT > 1:
        if block >= first:
            layer, b, out, columns, block = 1, b1, out1, columns1, block - first
            if COUNT > 2:
                if block >= second:
                    layer, b, out, columns, block = 2, b2, out2, columns2, block - second
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = block * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    across, down = tl.arange(0, RANKS)[None, :], tl.arange(0, RANKS)[:, None]
    place = low + row.to(tl.int64) * (COUNT * RANK) + layer * RANK + across
    values = tl.load(place, mask=(row < rows) & (across < RANK), other=0.0)
    matrix = tl.load(b + column * RANK + down, mask=(column < columns) & (down < RANK), other=0.0)
    _store(out, row, column, rows, columns, tl.dot(values, matrix))


@triton.jit(do_not_specialize=SIZES)
def _down_gradient_kernel(
    d_out0, d_out1, d_out2, b0, b1, b2, d_low, rows, factor, columns0, columns1, columns2,
    COUNT: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    layer = tl.program_id(1)
    d_out, b, columns = d_out0, b0, columns0
    if COUNT > 1:
        if layer == 1:
            d_out, b, columns = d_out1, b1, columns1
    if COUNT > 2:
        if layer == 2:
            d_out, b, columns = d_out2, b2, columns2
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    across = tl.arange(0, RANKS)[None, :]
    total = tl.zeros((ROWS, RANKS), tl.float32)
    for begin in range(0, columns, COLUMNS):
        column = begin + tl.arange(0, COLUMNS)
        values = _load(d_out, row, column[None, :], rows, columns)
        total = tl.dot(values, _load(b, column[:, None], across, columns, RANK), total)
    place = d_low + row.to(tl.int64) * (COUNT * RANK) + layer * RANK + across
    tl.store(place, (total * factor).to(d_low.dtype.element_ty), mask=(row < rows) & (across < RANK))


@triton.jit(do_not_specialize=VARYING)
def _input_gradient_kernel(
    d_low, a, d_x, rows, seed, more_seed, threshold, width,
    RANK: tl.constexpr, DROP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    values = _load(d_low, row, tl.arange(0, RANKS)[None, :], rows, RANK)
    total = tl.dot(values, _load(a, tl.arange(0, RANKS)[:, None], column, RANK, width))
    if DROP:
        total = tl.where(_kept(row, column, width, seed, more_seed, threshold), total, 0.0)
    _store(d_x, row, column, rows, width, total)


@triton.jit
def _sum_over_rows(
    x, low, gradient, layer, block, rows, width, seed, more_seed, threshold,
    LOW: tl.constexpr, RANK: tl.constexpr, DOWN: tl.constexpr, DROP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    """``x' @ low``, for a block of the columns of ``x``, over the share of the rows of a program; see `_matrix_...`."""
    column = block * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    across = tl.arange(0, RANKS)[None, :]
    total = tl.zeros((COLUMNS, RANKS), tl.float32)
    share = tl.cdiv(tl.cdiv(rows, ROWS), tl.num_programs(1)) * ROWS
    first = tl.program_id(1) * share
    for begin in range(first, tl.minimum(first + share, rows), ROWS):
        row = begin + tl.arange(0, ROWS)[:, None]
        values = _load(x, row, column, rows, width)
        if DROP:
            values = tl.where(_kept(row, column, width, seed, more_seed, threshold), values, 0.0)
        place = low + row.to(tl.int64) * LOW + layer * RANK + across
        part = tl.load(place, mask=(row < rows) & (across < RANK), other=0.0)
        total = tl.dot(tl.trans(values), part, total)
    column = block * COLUMNS + tl.arange(0, COLUMNS)[:, None]
    # A is stored with its ranks as rows, B with its ranks as columns.
    place = across * width + column if DOWN else column * RANK + across
    tl.store(gradient + place, total, mask=(column < width) & (across < RANK))


@triton.jit(do_not_specialize=VARYING)
def _matrix_gradients_kernel(
    d_out0, d_out1, d_out2, low, x, d_low, gradients, rows, seed, more_seed, threshold,
    width, columns0, columns1, columns2,
    COUNT: tl.constexpr, RANK: tl.constexpr, DROP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    RANKS: tl.constexpr, ALL_RANKS: tl.constexpr,
):  # fmt: skip
    block, low_width = tl.program_id(0), COUNT * RANK
    # Each program of the second dimension sums a share of the rows, and writes its own gradients.
    size = low_width * width + RANK * (columns0 + (columns1 if COUNT > 1 else 0) + (columns2 if COUNT > 2 else 0))
    gradients += tl.program_id(1).to(tl.int64) * size
    blocks, first, second = tl.cdiv(width, COLUMNS), tl.cdiv(columns0, COLUMNS), tl.cdiv(columns1, COLUMNS)
    if block < blocks:
        _sum_over_rows(
            x, d_low, gradients, 0, block, rows, width, seed, more_seed, threshold,
            COUNT * RANK, COUNT * RANK, True, DROP, ROWS, COLUMNS, ALL_RANKS,
        )  # fmt: skip
    else:
        block -= blocks
        gradients += low_width * width
        layer, d_out, columns = 0, d_out0, columns0
        if COUNT > 1:
            if block >= first:
                layer, d_out, columns, block = 1, d_out1, columns1, block - first
                gradients += RANK * columns0
                if COUNT > 2:
                    if block >= second:
                        layer, d_out, columns, block = 2, d_out2, columns2, block - second
                        gradients += RANK * columns1
        _sum_over_rows(
            d_out, low, gradients, layer, block, rows, columns, 0, 0, 0,
            COUNT * RANK, RANK, False, False, ROWS, COLUMNS, RANKS,
        )  # fmt: skip


@dataclass(frozen=True)
class Tile:
    """What a program works on at once, and how the compiler parallelizes it."""

    rows: int
    columns: int
    warps: int
    stages: int


# Measured by bench/lora_tiles.py.
TILES = {
    "down": Tile(32, 128, 4, 4), "up": Tile(64, 128, 4, 1), "down_gradient": Tile(64, 64, 8, 4),
    "input_gradient": Tile(64, 128, 4, 1), "matrix_gradients": Tile(128, 64, 4, 4),
}  # fmt: skip
# Into how many parts sums over rows are cut, so that there is work for all processors.
SHARES = 8


@cache
def _tile(kernel: str, rank: int) -> tuple[Tile, int]:
    """The tile of a kernel, and the width of a tile of this rank."""
    tile, ranks = TILES[kernel], max(16, next_power_of_2(rank))
    # So that it fits into the registers, and into the 99 KiB of a consumer card.
    return tile if ranks <= 32 else replace(tile, columns=min(tile.columns, 64), stages=min(tile.stages, 2)), ranks


def lora_down(x: torch.Tensor, a: torch.Tensor, factor: float, rate: float, seed: int) -> torch.Tensor:
    """See `llmcls.model.lora_formulas.lora_down`."""
    (rows, width), rank = x.shape, a.shape[0]
    low = torch.empty(rows, rank, dtype=x.dtype, device=x.device)
    if rows:
        tile, ranks = _tile("down", rank)
        start(
            _down_kernel, (-(-rows // tile.rows), 1, 1), (x.contiguous(), a, low), (rows, *_draw(rate, seed)),
            (factor,), (width,), (rank, rate > 0, tile.rows, tile.columns, ranks), tile.warps, tile.stages,
        )  # fmt: skip
    return low


def lora_up(low: torch.Tensor, b: list[torch.Tensor]) -> list[torch.Tensor]:
    """See `llmcls.model.lora_formulas.lora_up`."""
    rows, rank, columns = low.shape[0], b[0].shape[1], tuple([matrix.shape[0] for matrix in b])
    outs = [torch.empty(rows, count, dtype=low.dtype, device=low.device) for count in columns]
    if rows:
        tile, ranks = _tile("up", rank)
        start(
            _up_kernel, (-(-rows // tile.rows), _blocks(columns, tile.columns), 1), (low, *_three(b), *_three(outs)),
            (rows,), (), _three(columns), (len(b), rank, tile.rows, tile.columns, ranks), tile.warps, tile.stages,
        )  # fmt: skip
    return outs


def lora_down_gradient(d_outs: list[torch.Tensor], b: list[torch.Tensor], factor: float) -> torch.Tensor:
    """See `llmcls.model.lora_formulas.lora_down_gradient`."""
    d_outs, rank, count = [d.contiguous() for d in d_outs], b[0].shape[1], len(b)
    rows, columns = d_outs[0].shape[0], tuple([d.shape[1] for d in d_outs])
    d_low = torch.empty(rows, count * rank, dtype=d_outs[0].dtype, device=d_outs[0].device)
    if rows:
        tile, ranks = _tile("down_gradient", rank)
        start(
            _down_gradient_kernel, (-(-rows // tile.rows), count, 1), (*_three(d_outs), *_three(b), d_low), (rows,),
            (factor,), _three(columns), (count, rank, tile.rows, tile.columns, ranks), tile.warps, tile.stages,
        )  # fmt: skip
    return d_low


def lora_input_gradient(d_low: torch.Tensor, a: torch.Tensor, rate: float, seed: int) -> torch.Tensor:
    """See `llmcls.model.lora_formulas.lora_input_gradient`."""
    (rows, rank), width = d_low.shape, a.shape[1]
    d_x = torch.empty(rows, width, dtype=d_low.dtype, device=d_low.device)
    if rows:
        tile, ranks = _tile("input_gradient", rank)
        start(
            _input_gradient_kernel, (-(-rows // tile.rows), -(-width // tile.columns), 1), (d_low, a, d_x),
            (rows, *_draw(rate, seed)), (), (width,), (rank, rate > 0, tile.rows, tile.columns, ranks), tile.warps,
            tile.stages,
        )  # fmt: skip
    return d_x


def lora_matrix_gradients(
    d_outs: list[torch.Tensor], low: torch.Tensor, x: torch.Tensor, d_low: torch.Tensor, rate: float, seed: int
) -> list[torch.Tensor]:
    """See `llmcls.model.lora_formulas.lora_matrix_gradients`."""
    d_outs, (rows, width), count = [d.contiguous() for d in d_outs], x.shape, len(d_outs)
    columns, rank = tuple([d.shape[1] for d in d_outs]), low.shape[1] // count
    (tile, all_ranks), ranks = _tile("matrix_gradients", count * rank), max(16, next_power_of_2(rank))
    sizes = [count * rank * width, *[n * rank for n in columns]]
    gradients = torch.empty(SHARES, sum(sizes), dtype=torch.float32, device=x.device)
    start(
        _matrix_gradients_kernel, (_blocks((width, *columns), tile.columns), SHARES, 1),
        (*_three(d_outs), low, x.contiguous(), d_low, gradients), (rows, *_draw(rate, seed)), (),
        (width, *_three(columns)),
        (count, rank, rate > 0, tile.rows, tile.columns, ranks, all_ranks), tile.warps, tile.stages,
    )  # fmt: skip
    d_a, *d_b = gradients.sum(0).split(sizes)
    return [d_a.view(count * rank, width), *[d.view(-1, rank) for d in d_b]]


def _three(values: Sequence[Any]) -> tuple[Any, ...]:
    """Arguments of three layers; a layer that is missing has those of the last, which no kernel reads."""
    return (*values, *[values[-1]] * (3 - len(values)))


@cache
def _blocks(columns: tuple[int, ...], size: int) -> int:
    """The number of blocks of matrices with these columns."""
    return sum(-(-count // size) for count in columns)


def _draw(rate: float, seed: int) -> tuple[int, int, int]:
    """What a kernel knows of the dropout."""
    return (*halves_of(seed), threshold_of(rate))


KERNELS: dict[str, Any] = {
    "lora_down": lora_down, "lora_up": lora_up, "lora_down_gradient": lora_down_gradient,
    "lora_input_gradient": lora_input_gradient, "lora_matrix_gradients": lora_matrix_gradients,
}  # fmt: skip
