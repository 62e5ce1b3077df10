"""The formulas behind `llmcls.model.fused_ops`, and their registration with torch.

Each formula is one function of whole tensors. It is registered as an operation under ``torch.ops.llmcls``, with a last
argument that says whether to run it compiled, as one kernel, or operation by operation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch._dynamo.exc import FailOnRecompileLimitHit

from llmcls.model.lora_formulas import LORA_FORMULAS

try:
    from llmcls.model import lora_kernels, triton_kernels
except ModuleNotFoundError as error:
    # Not in builds of torch for CPUs.
    if error.name != "triton":
        raise
    TRITON: dict[str, Callable[..., Any]] = {}
else:
    # Kernels that need not be compiled by torch, by the name of their formula.
    TRITON = triton_kernels.KERNELS | lora_kernels.KERNELS

NAMESPACE = "llmcls"


def _rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, unit_offset: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1) + eps)
    normed = wide * scale[..., None]
    if unit_offset:
        return (normed * (1.0 + weight.float())).to(x.dtype), scale
    return weight * normed.to(x.dtype), scale


def _add_rms_norm(
    x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, eps: float, unit_offset: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    total = x + y
    return total, *_rms_norm(total, weight, eps, unit_offset)


def _rms_norm_backward(
    d_out: torch.Tensor,
    d_x: torch.Tensor | None,
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    unit_offset: bool,
) -> torch.Tensor:
    # y = w x r with r = (mean(x^2) + eps)^(-1/2), so dx = r (g - n mean(g n)) with g = w dy and n = x r.
    normed = x.float() * scale[..., None]
    wide_weight = weight.float()
    d_normed = d_out.float() * (wide_weight + 1.0 if unit_offset else wide_weight)
    along = (d_normed * normed).mean(-1, keepdim=True)
    gradient = (d_normed - normed * along) * scale[..., None]
    return (gradient if d_x is None else gradient + d_x).to(x.dtype)


def _activate(gate: torch.Tensor, activation: str) -> torch.Tensor:
    return F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")


def _gated_activation(gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    return _activate(gate, activation) * up


def _gated_activation_backward(
    d_out: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, activation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    d_active = d_out * up
    if activation == "silu":
        d_gate = torch.ops.aten.silu_backward(d_active, gate)
    else:
        d_gate = torch.ops.aten.gelu_backward(d_active, gate, approximate="tanh")
    return d_gate, d_out * _activate(gate, activation)


def _rotary(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, inverse: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    cos, sin = cos[:, None], (-sin if inverse else sin)[:, None]

    def rotate(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)

    return rotate(query), rotate(key)


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    wide = scores.float()
    exponentials = torch.exp(wide - wide.amax(-1, keepdim=True))
    return (exponentials / exponentials.sum(-1, keepdim=True)).to(scores.dtype)


def _softmax_backward(weights: torch.Tensor, d_weights: torch.Tensor) -> torch.Tensor:
    wide, d_wide = weights.float(), d_weights.float()
    return (wide * (d_wide - (wide * d_wide).sum(-1, keepdim=True))).to(weights.dtype)


# Formula, the arguments of its operation, and the types that it returns.
FORMULAS: dict[str, tuple[Callable[..., Any], str]] = {
    "rms_norm": (
        _rms_norm,
        "(Tensor x, Tensor weight, float eps, bool unit_offset, bool compiled) -> (Tensor, Tensor)",
    ),
    "add_rms_norm": (
        _add_rms_norm,
        "(Tensor x, Tensor y, Tensor weight, float eps, bool unit_offset, bool compiled) -> (Tensor, Tensor, Tensor)",
    ),
    "rms_norm_backward": (
        _rms_norm_backward,
        "(Tensor d_out, Tensor? d_x, Tensor x, Tensor weight, Tensor scale, bool unit_offset, bool compiled) -> Tensor",
    ),
    "gated_activation": (_gated_activation, "(Tensor gate, Tensor up, str activation, bool compiled) -> Tensor"),
    "gated_activation_backward": (
        _gated_activation_backward,
        "(Tensor d_out, Tensor gate, Tensor up, str activation, bool compiled) -> (Tensor, Tensor)",
    ),
    "softmax": (_softmax, "(Tensor scores, bool compiled) -> Tensor"),
    "softmax_backward": (_softmax_backward, "(Tensor weights, Tensor d_weights, bool compiled) -> Tensor"),
    "rotary": (
        _rotary,
        "(Tensor query, Tensor key, Tensor cos, Tensor sin, bool inverse, bool compiled) -> (Tensor, Tensor)",
    ),
    **LORA_FORMULAS,
}


def compute(name: str, *arguments: Any, compiled: bool) -> Any:
    """A formula of these arguments.

    Parameters
    ----------
    name : str
        A key of `FORMULAS`.
    *arguments
    compiled : bool
        Whether to run it as one kernel.
    """
    first = arguments[0][0] if isinstance(arguments[0], list) else arguments[0]
    # Through torch's dispatcher, which shows operations to those who trace them, the host takes twice as long.
    if compiled and first.is_cuda and type(first) is torch.Tensor and (kernel := TRITON.get(name)) is not None:
        return kernel(*arguments)
    register_formulas()
    return getattr(getattr(torch.ops, NAMESPACE), name)(*arguments, compiled)


@cache
def register_formulas() -> torch.library.Library:
    """Register the operations with torch, at their first use."""
    library = torch.library.Library(NAMESPACE, "DEF")
    for name, (formula, signature) in FORMULAS.items():
        library.define(name + signature)
        library.impl(name, _implementation(name, formula), "CompositeExplicitAutograd")
        # Fake tensors have shapes and dtypes only, which the formula itself tells.
        torch.library.register_fake(f"{NAMESPACE}::{name}", _without_choice(formula), lib=library)
    return library


def _implementation(name: str, formula: Callable[..., Any]) -> Callable[..., Any]:
    """The formula with a last argument: whether it is compiled."""

    def run(*arguments: Any) -> Any:
        *inputs, compiled = arguments
        if not compiled:
            return formula(*inputs)
        first = inputs[0][0] if isinstance(inputs[0], list) else inputs[0]
        if first.is_cuda and (kernel := TRITON.get(name)) is not None:
            return kernel(*inputs)
        # Compiled code depends on whether a tensor is a view or has a gradient; here, it makes no difference.
        inputs = [x.detach() if isinstance(x, torch.Tensor) else x for x in inputs]
        try:
            with torch.no_grad():
                return _compiled(formula)(*inputs)
        except FailOnRecompileLimitHit:
            return formula(*inputs)

    return run


def _without_choice(formula: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: formula(*arguments[:-1])


@cache
def _compiled(formula: Callable[..., Any]) -> Callable[..., Any]:
    """One kernel for all lengths: sizes are dynamic, so no length compiles again."""
    return torch.compile(formula, dynamic=True, fullgraph=True)
