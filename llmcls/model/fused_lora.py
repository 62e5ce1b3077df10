"""LoRA as one function over all linear layers that read the same input.

For each layer, ``y = x W' + s drop(x) A' B'`` (Hu et al. 2021, LoRA, equation 3). Written as modules, this keeps the
input several times for the backward pass, adds the two terms in a tensor of its own, and draws a mask per layer. Here:

- the input is kept once for all layers that read it, with one dropout mask;
- the adapter's part is added to the output of the base layer in place;
- the matrices A of all layers are one matrix product;
- a 4-bit weight is dequantized again in the backward pass instead of being kept.

On GPUs in 16 bits, the steps of the adapters are the kernels of `llmcls.model.lora_kernels`, and only the products with
the weights of the model are left to torch. Elsewhere, everything is a few matrix products.

Parameters, their names and the files they are saved in stay those of peft.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from llmcls.model.formulas import compute
from llmcls.model.four_bit import dequantized
from llmcls.model.fused_ops import dropout, dropout_backward
from llmcls.model.lora_formulas import draw_seed
from llmcls.model.stand_in import device_kind

# What a layer consists of, found once as long as its adapter stays as it is: the host has little time for each layer.
_parts: WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], Any]] = WeakKeyDictionary()
# What the kernels of the adapters take: layers that read the same input, and the sum of their ranks.
MOST_LAYERS, MOST_RANKS = 3, 128
# From layers to their matrices A and B in a dtype, see `rounded`.
MatricesOf = Callable[[Sequence["LoraLinear"], torch.dtype], tuple[torch.Tensor, list[torch.Tensor]]]


@dataclass(frozen=True)
class LoraLinear:
    """A linear layer with a plain LoRA adapter.

    Attributes
    ----------
    base : nn.Module
        The frozen layer, possibly in 4 bits.
    a, b : torch.Tensor
        float [rank, inputs] and [outputs, rank].
    scaling : float
    dropout : float
        Probability; 0 in evaluation.
    """

    base: Any
    a: torch.Tensor
    b: torch.Tensor
    scaling: float
    dropout: float


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
    if compiled and dtype != torch.float32 and device_kind(x) == "cuda" and _suit_kernels(layers):
        copies = (matrices_of or rounded)(layers, dtype)
        return list(_LoraKernels.apply(x, layers, dtype, copies, *matrices))  # type: ignore[no-untyped-call]
    return list(_LoraProducts.apply(x, layers, dtype, *matrices))  # type: ignore[no-untyped-call]


def _suit_kernels(layers: list[LoraLinear]) -> bool:
    """Whether the kernels take these layers: few of them, with one rank and one factor."""
    rank, scaling = layers[0].a.shape[0], layers[0].scaling
    alike = all(layer.a.shape[0] == rank and layer.scaling == scaling for layer in layers[1:])
    return alike and len(layers) <= MOST_LAYERS and rank * len(layers) <= MOST_RANKS


def rounded(layers: Sequence[LoraLinear], dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The matrices A of layers below each other, and their matrices B.

    Parameters
    ----------
    layers : sequence of LoraLinear
        Of one input and one rank.
    dtype : torch.dtype

    Returns
    -------
    float [layers x rank, inputs] and a list of float [outputs, rank], contiguous, in this dtype
    """
    a = layers[0].a if len(layers) == 1 else torch.cat([layer.a for layer in layers])
    return a.detach().to(dtype).contiguous(), [layer.b.detach().to(dtype).contiguous() for layer in layers]


class _LoraKernels(torch.autograd.Function):
    """The formulas of `llmcls.model.lora_formulas`, each as one kernel, and the products with the frozen weights."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        layers: list[LoraLinear],
        dtype: torch.dtype,
        copies: tuple[torch.Tensor, list[torch.Tensor]],
        *_: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        rate, (a, b) = layers[0].dropout, copies
        rows, seed, factor = _rows(x, dtype), draw_seed(x) if rate else 0, layers[0].scaling / (1 - rate)
        low = compute("lora_down", rows, a, factor, rate, seed, compiled=True)
        outputs = []
        # The small product only writes the output. The large one adds to it while it computes.
        for layer, out in zip(layers, compute("lora_up", low, b, compiled=True), strict=True):
            out.addmm_(rows, base_weight(layer.base, dtype, compiled=True).t())
            if layer.base.bias is not None:
                out += layer.base.bias.to(dtype)
            outputs.append(out.view(*x.shape[:-1], -1))
        ctx.save_for_backward(rows, low, a, *b)
        ctx.layers, ctx.factor, ctx.rate, ctx.seed, ctx.dtype = layers, factor, rate, seed, dtype
        ctx.of_input = x.shape, x.dtype
        return tuple(outputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *d_outputs: torch.Tensor) -> Any:
        rows, low, a, *b = ctx.saved_tensors
        d_outs, d_x = [_rows(d, ctx.dtype) for d in d_outputs], None
        d_low = compute("lora_down_gradient", d_outs, b, ctx.factor, compiled=True)
        d_a, *d_b = compute("lora_matrix_gradients", d_outs, low, rows, d_low, ctx.rate, ctx.seed, compiled=True)
        if ctx.needs_input_grad[0]:
            d_x = compute("lora_input_gradient", d_low, a, ctx.rate, ctx.seed, compiled=True)
            d_x = _with_base_gradients(ctx, d_x, d_outs, compiled=True)
        return d_x, None, None, None, *d_a.chunk(len(b)), *d_b


def _rows(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float [..., width] to [rows, width], of this dtype."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.dtype == dtype else rows.to(dtype)


def _with_base_gradients(ctx: Any, d_x: torch.Tensor, d_outs: list[torch.Tensor], compiled: bool) -> torch.Tensor:
    """Add the gradients through the base layers to that of the rows, which then gets the shape of the input."""
    for d, layer in zip(d_outs, ctx.layers, strict=True):
        d_x.addmm_(d, base_weight(layer.base, ctx.dtype, compiled))
    shape, dtype = ctx.of_input
    return d_x.view(shape) if d_x.dtype == dtype else d_x.view(shape).to(dtype)


class _LoraProducts(torch.autograd.Function):
    """The same as matrix products of torch."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, layers: list[LoraLinear], dtype: torch.dtype, *matrices: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        rate, count = layers[0].dropout, len(layers)
        with torch.autocast(x.device.type, enabled=False):
            rows = _rows(x, dtype)
            dropped, mask, gain = dropout(rows, rate) if rate else (rows, None, 1.0)
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
            d_b = [_float32_product(d.t(), part) for d, part in zip(rows, low.split(ctx.ranks, dim=1), strict=True)]
            d_x = None
            if ctx.needs_input_grad[0]:
                d_x = d_low @ a if mask is None else dropout_backward(d_low @ a, mask, ctx.rate)
                d_x = _with_base_gradients(ctx, d_x, rows, compiled=False)
        return d_x, None, None, *d_a, *d_b


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


def base_weight(layer: Any, dtype: torch.dtype, compiled: bool = False) -> torch.Tensor:
    """The weight of a frozen linear layer, float [outputs, inputs]; see `llmcls.model.four_bit.dequantized`."""
    weight: torch.Tensor = layer.weight
    if type(layer) is not nn.Linear:
        # Under FSDP the gathered weight is a new tensor, without the state that the module still has.
        state = getattr(weight, "quant_state", None) or getattr(layer, "quant_state", None)
        if state is not None:
            return dequantized(weight, state, dtype, compiled)
    return weight if weight.dtype == dtype else weight.to(dtype)
