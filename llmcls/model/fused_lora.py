"""LoRA as one function over all linear layers that read the same input.

For each layer, ``y = x W' + s drop(x) A' B'`` (Hu et al. 2021, LoRA, equation 3). Written as modules, this keeps the
input several times for the backward pass, adds the two terms in a tensor of its own, and draws a mask per layer. Here:

- the input is kept once for all layers that read it, with one dropout mask;
- the adapter's part is added to the output of the base layer in place;
- the matrices A of all layers are one matrix product;
- a 4-bit weight is dequantized again in the backward pass instead of being kept.

On GPUs in 16 bits, this is `llmcls.model.lora_products`. Elsewhere, everything is a few matrix products.

Parameters, their names and the files they are saved in stay those of peft.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from llmcls.model.fused_ops import dropout, dropout_backward
from llmcls.model.lora_products import (
    LoraLinear,
    Product,
    adapted_product,
    adapted_product_backward,
    base_weight,
    rounded,
    seeds_for,
    suit_kernels,
)
from llmcls.model.stand_in import device_kind

# What a layer consists of, found once as long as its adapter stays as it is: the host has little time for each layer.
_parts: WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], Any]] = WeakKeyDictionary()
# From layers to their matrices A and B in a dtype, see `rounded`.
MatricesOf = Callable[[Sequence[LoraLinear], torch.dtype], tuple[torch.Tensor, list[torch.Tensor]]]


def lora_linear(module: Any) -> LoraLinear | None:
    """The parts of a LoRA layer of peft, or None if it does more than `project` computes.

    DoRA, biases of the adapter, several or disabled or merged adapters, and trained or other base layers are left to
    peft.
    """
    matrices = getattr(module, "lora_A", None)
    if matrices is None:
        return None
    # Also the modules themselves, because an adapter may be replaced by another one of its name.
    key = (
        str(module.active_adapter), module.disable_adapters, len(module.merged_adapters), *map(id, matrices.values()),
    )  # fmt: skip
    known = _parts.get(module)
    if known is None or known[0] != key:
        _parts[module] = known = key, _plain_parts(module)
    if known[1] is None:
        return None
    name, down, up, base, drop = known[1]
    rate = drop.p if isinstance(drop, nn.Dropout) and module.training else 0.0
    return LoraLinear(base, down.weight, up.weight, float(module.scaling[name]), rate)


def _plain_parts(module: Any) -> tuple[str, nn.Linear, nn.Linear, nn.Linear, nn.Module] | None:
    """The name of a plain adapter, its two matrices, the base layer and the dropout; None for what is left to peft."""
    if len(module.active_adapters) != 1:
        return None
    name = module.active_adapters[0]
    if module.disable_adapters or module.merged or name not in module.lora_A or name in module.lora_variant:
        return None
    down, up, base, drop = module.lora_A[name], module.lora_B[name], module.base_layer, module.lora_dropout[name]
    plain = type(down) is type(up) is nn.Linear and down.bias is None and up.bias is None
    if not plain or not isinstance(base, nn.Linear) or base.weight.requires_grad:
        return None
    return (name, down, up, base, drop) if type(drop) in (nn.Dropout, nn.Identity) else None


def project(
    modules: Sequence[Any], x: torch.Tensor, compiled: bool = False, matrices_of: MatricesOf | None = None
) -> list[torch.Tensor]:
    """Outputs of layers that read the same input.

    Parameters
    ----------
    modules : sequence of nn.Module
        Linear layers, with or without LoRA. Only if all have a plain adapter with the same dropout, they are computed
        together; else each by itself.
    x : float [..., inputs]
    compiled : bool
        Whether to use kernels.
    matrices_of : callable, optional
        `llmcls.model.adapter_copies.AdapterCopies.of`.

    Returns
    -------
    list of float [..., outputs]
        In the dtype of autocast, or of ``x`` without it.
    """
    layers = plain_layers(modules)
    if layers is None:
        return [module(x) for module in modules]
    return project_layers(layers, x, compiled, matrices_of)


def plain_layers(modules: Sequence[Any]) -> list[LoraLinear] | None:
    """The parts of layers that can be computed together, or None."""
    found = [lora_linear(module) for module in modules]
    layers = [layer for layer in found if layer is not None]
    alike = len(layers) == len(modules) and all(layer.dropout == layers[0].dropout for layer in layers)
    return layers if alike else None


def project_layers(
    layers: list[LoraLinear], x: torch.Tensor, compiled: bool = False, matrices_of: MatricesOf | None = None
) -> list[torch.Tensor]:
    """Like `project`, for what `plain_layers` found."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    matrices = [layer.a for layer in layers] + [layer.b for layer in layers]
    if compiled and dtype != torch.float32 and device_kind(x) == "cuda" and suit_kernels(layers):
        copies = (matrices_of or rounded)(layers, dtype)
        return list(_LoraKernels.apply(x, layers, dtype, copies, *matrices))  # type: ignore[no-untyped-call]
    return list(_LoraProducts.apply(x, layers, dtype, compiled, *matrices))  # type: ignore[no-untyped-call]


class _LoraKernels(torch.autograd.Function):
    """`adapted_product` of one input."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        layers: list[LoraLinear],
        dtype: torch.dtype,
        copies: tuple[torch.Tensor, list[torch.Tensor]],
        *_: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        (seed,) = seeds_for([layers], x)
        outputs, product = adapted_product(_rows(x, dtype), layers, copies, seed)
        ctx.save_for_backward(product.rows, product.low, product.a, *product.b)
        ctx.layers, ctx.seed, ctx.dtype = layers, seed, dtype
        ctx.of_input = x.shape, x.dtype
        return tuple([out.view(*x.shape[:-1], -1) for out in outputs])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *d_outputs: torch.Tensor) -> Any:
        rows, low, a, *b = ctx.saved_tensors
        product = Product(rows, low, a, b, ctx.layers, ctx.seed)
        d_outs = [_rows(d, ctx.dtype) for d in d_outputs]
        d_x, gradients = adapted_product_backward(product, d_outs, ctx.needs_input_grad[0])
        shape, dtype = ctx.of_input
        return None if d_x is None else d_x.view(shape).to(dtype), None, None, None, *gradients


def _rows(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float [..., width] to [rows, width], of this dtype."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.dtype == dtype else rows.to(dtype)


class _LoraProducts(torch.autograd.Function):
    """The same as matrix products of torch."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, layers: list[LoraLinear], dtype: torch.dtype, compiled: bool, *matrices: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        rate, count = layers[0].dropout, len(layers)
        with torch.autocast(x.device.type, enabled=False):
            rows = _rows(x, dtype)
            dropped, mask, gain = dropout(rows, rate, compiled) if rate else (rows, None, 1.0)
            a = (matrices[0] if count == 1 else torch.cat(matrices[:count])).to(dtype)
            b = [matrix.to(dtype) for matrix in matrices[count:]]
            ranks, factors = [m.shape[1] for m in b], [gain * layer.scaling for layer in layers]
            low = _scale(dropped @ a.t(), ranks, factors)
            outputs = []
            for layer, part, up in zip(layers, low.split(ranks, dim=1), b, strict=True):
                bias, weight = layer.base.bias, base_weight(layer.base, dtype)
                if device_kind(rows) == "cpu":
                    out = torch.nn.functional.linear(rows, weight)
                    out.addmm_(part, up.t())
                else:
                    # The small product only writes the output, where it would otherwise read and write it. The large
                    # one adds to it while it computes.
                    out = part @ up.t()
                    out.addmm_(rows, weight.t())
                if bias is not None:
                    out += bias.to(dtype)
                outputs.append(out.view(*x.shape[:-1], -1))
        ctx.save_for_backward(dropped, mask, a, low, *b)
        ctx.layers, ctx.rate, ctx.factors, ctx.ranks, ctx.dtype = layers, rate, factors, ranks, dtype
        ctx.of_input = x.shape, x.dtype
        return tuple(outputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *d_outputs: torch.Tensor) -> Any:
        dropped, mask, a, low, *b = ctx.saved_tensors
        with torch.autocast(dropped.device.type, enabled=False):
            rows = [_rows(d, ctx.dtype) for d in d_outputs]
            d_parts = [d @ up for d, up in zip(rows, b, strict=True)]
            d_low = _scale(d_parts[0] if len(b) == 1 else torch.cat(d_parts, dim=1), ctx.ranks, ctx.factors)
            d_a = _float32_product(d_low.t(), dropped).split(ctx.ranks)
            # The wide matrix as it lies in memory: transposed, it would take half as long again.
            d_b = [_float32_product(part.t(), d).t() for d, part in zip(rows, low.split(ctx.ranks, dim=1), strict=True)]
            d_x = None
            if ctx.needs_input_grad[0]:
                d_x = d_low @ a if mask is None else dropout_backward(d_low @ a, mask, ctx.rate)
                for d, layer in zip(rows, ctx.layers, strict=True):
                    d_x.addmm_(d, base_weight(layer.base, ctx.dtype))
                shape, dtype = ctx.of_input
                d_x = d_x.view(shape).to(dtype)
        return d_x, None, None, None, *d_a, *d_b


def _scale(low: torch.Tensor, ranks: list[int], factors: list[float]) -> torch.Tensor:
    """Multiply the columns of each layer by its factor, in place; float [rows, ranks]."""
    if len(set(factors)) == 1:
        return low if factors[0] == 1.0 else low.mul_(factors[0])
    for part, factor in zip(low.split(ranks, dim=1), factors, strict=True):
        part.mul_(factor)
    return low


def _float32_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """A matrix product as float32, without rounding it to 16 bits before where the device can do that."""
    if device_kind(left) == "cuda" and left.dtype != torch.float32 and torch.version.hip is None:
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).float()
