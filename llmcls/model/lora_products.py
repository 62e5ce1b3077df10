"""Linear layers with LoRA adapters that read the same input, as products and kernels without a graph.

The steps of the adapters are the formulas of `llmcls.model.lora_formulas`, each one kernel of
`llmcls.model.lora_kernels`; only the products with the weights of the model are left to torch.
`llmcls.model.fused_lora` and `llmcls.model.fused_layer` make them differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llmcls.model.formulas import compute
from llmcls.model.four_bit import dequantized
from llmcls.model.lora_formulas import draw_seeds

# What the kernels of the adapters take: layers that read the same input, and the sum of their ranks.
MOST_LAYERS, MOST_RANKS = 3, 128


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

    @property
    def factor(self) -> float:
        """Of the adapter's part: its scaling, divided by the share of values that dropout keeps."""
        return self.scaling / (1 - self.dropout)


def suit_kernels(layers: Sequence[LoraLinear]) -> bool:
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


@dataclass(frozen=True)
class Product:
    """What the backward pass of `adapted_product` needs.

    Attributes
    ----------
    rows : float16 or bfloat16 [rows, inputs]
        The input.
    low : float [rows, layers x rank]
        The input behind dropout and the matrices A, scaled.
    a : float [layers x rank, inputs]
    b : list of float [outputs, rank]
    layers : list of LoraLinear
    seed : int
        Of the dropout.
    """

    rows: torch.Tensor
    low: torch.Tensor
    a: torch.Tensor
    b: list[torch.Tensor]
    layers: list[LoraLinear]
    seed: int


def seeds_for(groups: Sequence[Sequence[LoraLinear]], rows: torch.Tensor) -> list[int]:
    """A seed of dropout for each group of layers that read the same input; 0 without dropout. See `draw_seeds`."""
    dropping = [group[0].dropout > 0 for group in groups]
    seeds = iter(draw_seeds(rows, sum(dropping)) if any(dropping) else ())
    return [next(seeds) if drops else 0 for drops in dropping]


def adapted_product(
    rows: torch.Tensor, layers: list[LoraLinear], copies: tuple[torch.Tensor, list[torch.Tensor]], seed: int
) -> tuple[list[torch.Tensor], Product]:
    """Outputs [rows, outputs] of layers that suit the kernels, without a graph.

    Parameters
    ----------
    rows : float16 or bfloat16 [rows, inputs]
    layers : list of LoraLinear
    copies : float [layers x rank, inputs] and list of float [outputs, rank]
        From `rounded`, in the dtype of ``rows``.
    seed : int
        From `seeds_for`.
    """
    (a, b), first, dtype = copies, layers[0], rows.dtype
    low = compute("lora_down", rows, a, first.factor, first.dropout, seed, compiled=True)
    outputs = compute("lora_up", low, b, compiled=True)
    # The small product only writes the output. The large one adds to it while it computes.
    for layer, out in zip(layers, outputs, strict=True):
        out.addmm_(rows, base_weight(layer.base, dtype, compiled=True).t())
        if layer.base.bias is not None:
            out += layer.base.bias.to(dtype)
    return outputs, Product(rows, low, a, b, layers, seed)


def adapted_product_backward(
    product: Product, d_outs: list[torch.Tensor], of_input: bool
) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
    """The gradient of ``rows`` if it is wanted, and those of all matrices A and then B, in float32.

    Parameters
    ----------
    product : Product
    d_outs : list of float [rows, outputs]
        Of the dtype of ``rows``.
    of_input : bool
    """
    rows, layers, seed, d_x = product.rows, product.layers, product.seed, None
    rate = layers[0].dropout
    d_low = compute("lora_down_gradient", d_outs, product.b, layers[0].factor, compiled=True)
    d_a, *d_b = compute("lora_matrix_gradients", d_outs, product.low, rows, d_low, rate, seed, compiled=True)
    if of_input:
        d_x = compute("lora_input_gradient", d_low, product.a, rate, seed, compiled=True)
        for d, layer in zip(d_outs, layers, strict=True):
            d_x.addmm_(d, base_weight(layer.base, rows.dtype, compiled=True))
    return d_x, [d_a, *d_b] if len(layers) == 1 else [*d_a.chunk(len(layers)), *d_b]


def base_weight(layer: Any, dtype: torch.dtype, compiled: bool = False) -> torch.Tensor:
    """The weight of a frozen linear layer, float [outputs, inputs]; see `llmcls.model.four_bit.dequantized`."""
    weight: torch.Tensor = layer.weight
    if type(layer) is not nn.Linear:
        # Under FSDP the gathered weight is a new tensor, without the state that the module still has.
        state = getattr(weight, "quant_state", None) or getattr(layer, "quant_state", None)
        if state is not None:
            return dequantized(weight, state, dtype, compiled)
    return weight if weight.dtype == dtype else weight.to(dtype)
