"""LoRA as one function over all linear layers that read the same input.

For each layer, ``y = x W' + s drop(x) A' B'`` (Hu et al. 2021, LoRA, equation 3). Written as modules, this keeps the
input several times for the backward pass, adds the two terms in a tensor of its own, and draws a mask per layer. Here:

- the input is kept once for all layers that read it, with one dropout mask;
- the adapter's part is added to the output of the base layer in place;
- the matrices A of all layers are one matrix product;
- a 4-bit weight is dequantized again in the backward pass instead of being kept.

Parameters, their names and the files they are saved in stay those of peft.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llmcls.model.fused_ops import dropout, product_dropout_backward
from llmcls.model.stand_in import device_kind


@dataclass(frozen=True)
class LoraLinear:
    """A linear layer with a plain LoRA adapter.

    Attributes
    ----------
    base : nn.Module
        The frozen layer, possibly in 4 bits.
    a, b : nn.Parameter
        float [rank, inputs] and [outputs, rank].
    scaling : float
    dropout : float
        Probability; 0 in evaluation.
    """

    base: Any
    a: nn.Parameter
    b: nn.Parameter
    scaling: float
    dropout: float


def lora_linear(module: Any) -> LoraLinear | None:
    """The parts of a LoRA layer of peft, or None if it does more than `project` computes.

    DoRA, biases of the adapter, several or disabled or merged adapters, and trained or other base layers are left to
    peft.
    """
    if not hasattr(module, "lora_A") or len(module.active_adapters) != 1:
        return None
    name = module.active_adapters[0]
    if module.disable_adapters or module.merged or name not in module.lora_A or name in module.lora_variant:
        return None
    down, up, base = module.lora_A[name], module.lora_B[name], module.base_layer
    plain = type(down) is type(up) is nn.Linear and down.bias is None and up.bias is None
    if not plain or not isinstance(base, nn.Linear) or base.weight.requires_grad:
        return None
    drop = module.lora_dropout[name]
    if type(drop) not in (nn.Dropout, nn.Identity):
        return None
    rate = drop.p if isinstance(drop, nn.Dropout) and module.training else 0.0
    return LoraLinear(base, down.weight, up.weight, float(module.scaling[name]), rate)


def project(modules: Sequence[Any], x: torch.Tensor, compiled: bool = False) -> list[torch.Tensor]:
    """Outputs of layers that read the same input.

    Parameters
    ----------
    modules : sequence of nn.Module
        Linear layers, with or without LoRA. Only if all have a plain adapter with the same dropout, they are computed
        together; else each by itself.
    x : float [..., inputs]
    compiled : bool
        Whether to compile formulas.

    Returns
    -------
    list of float [..., outputs]
        In the dtype of autocast, or of ``x`` without it.
    """
    layers = plain_layers(modules)
    return [module(x) for module in modules] if layers is None else project_layers(layers, x, compiled)


def plain_layers(modules: Sequence[Any]) -> list[LoraLinear] | None:
    """The parts of layers that can be computed together, or None."""
    found = [lora_linear(module) for module in modules]
    layers = [layer for layer in found if layer is not None]
    alike = len(layers) == len(modules) and all(layer.dropout == layers[0].dropout for layer in layers)
    return layers if alike else None


def project_layers(layers: list[LoraLinear], x: torch.Tensor, compiled: bool = False) -> list[torch.Tensor]:
    """Like `project`, for what `plain_layers` found."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    matrices = [layer.a for layer in layers] + [layer.b for layer in layers]
    return list(_Lora.apply(x, layers, dtype, compiled, *matrices))  # type: ignore[no-untyped-call]


class _Lora(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        layers: list[LoraLinear],
        dtype: torch.dtype,
        compiled: bool,
        *matrices: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        rate, count = layers[0].dropout, len(layers)
        with torch.autocast(x.device.type, enabled=False):
            rows = x.reshape(-1, x.shape[-1]).to(dtype)
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
        ctx.of_input, ctx.compiled = (x.shape, x.dtype), compiled
        return tuple(outputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *d_outputs: torch.Tensor) -> Any:
        dropped, mask, a, low, *b = ctx.saved_tensors
        with torch.autocast(dropped.device.type, enabled=False):
            rows = [d.reshape(-1, d.shape[-1]).to(ctx.dtype) for d in d_outputs]
            d_parts = [d @ up for d, up in zip(rows, b, strict=True)]
            d_low = _scale(d_parts[0] if len(b) == 1 else torch.cat(d_parts, dim=1), ctx.ranks, ctx.factors)
            d_a = _float32_product(d_low.t(), dropped).split(ctx.ranks)
            d_b = [_float32_product(d.t(), part) for d, part in zip(rows, low.split(ctx.ranks, dim=1), strict=True)]
            d_x = None
            if ctx.needs_input_grad[0]:
                d_x = d_low @ a if mask is None else product_dropout_backward(d_low, a, mask, ctx.rate, ctx.compiled)
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


def base_weight(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """The weight of a frozen linear layer, float [outputs, inputs]; dequantized if it has 4 bits."""
    # Under FSDP the gathered weight is a new tensor, without the state that the module still has.
    state = getattr(layer.weight, "quant_state", None) or getattr(layer, "quant_state", None)
    if state is None:
        return layer.weight.to(dtype)
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight, state).to(dtype)
