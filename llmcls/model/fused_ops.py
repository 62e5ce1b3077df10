"""Root-mean-square norm, gated activation and rotary embedding, each as one operation forward and one backward.

Written as separate tensor operations, each of them reads and writes its tensors several times, often as float32 copies.
Here a formula is one function, which `torch.compile` turns into one kernel where there is a compiler. Without one, the
same functions run operation by operation.

The operations are registered with torch under ``llmcls::``, so a trace under fake tensors counts each as one kernel.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from llmcls.model.formulas import compute
from llmcls.model.lora_formulas import draw_seeds, halves_of, threshold_of
from llmcls.model.stand_in import device_kind

ACTIVATIONS = ("silu", "gelu_tanh")
# The integers of the size of a float of 2 and of 4 bytes.
LANES = {2: torch.int16, 4: torch.int32}
# Keys from which on torch's softmax on a CPU is faster than the compiled formula: it takes as long for fewer keys.
TORCH_SOFTMAX_FROM = 64


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, unit_offset: bool = False, compiled: bool = False
) -> torch.Tensor:
    """Root-mean-square norm over the last dimension (Zhang & Sennrich 2019).

    Parameters
    ----------
    x : float [..., width]
    weight : float [width]
    eps : float
    unit_offset : bool
        Whether the factor is 1 + weight, in float32, as in Gemma; else it is the weight, applied after rounding to the
        dtype of ``x``, as in Llama.
    compiled : bool
        Whether to compile the formula.

    Returns
    -------
    float [..., width]
    """
    out: torch.Tensor = _RmsNorm.apply(x, weight, eps, unit_offset, compiled)  # type: ignore[no-untyped-call]
    return out


def add_rms_norm(
    x: torch.Tensor,
    y: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    unit_offset: bool = False,
    compiled: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``x + y`` and `rms_norm` of it, as the residual connections of a decoder need them.

    In the backward pass, the gradients of both results are added up while that of the norm is computed.

    Parameters
    ----------
    x : float [..., width]
    y : float [..., width], optional
        Without it, the first result is ``x``.
    weight, eps, unit_offset, compiled
        See `rms_norm`.
    """
    both: tuple[torch.Tensor, torch.Tensor] = _AddRmsNorm.apply(x, y, weight, eps, unit_offset, compiled)  # type: ignore[no-untyped-call]
    return both


def gated_activation(gate: torch.Tensor, up: torch.Tensor, activation: str, compiled: bool = False) -> torch.Tensor:
    """``activation(gate) * up``: SwiGLU or GEGLU without their projections (Shazeer 2020, "GLU Variants").

    Parameters
    ----------
    gate, up : float [..., width]
    activation : str
        One of `ACTIVATIONS`.
    compiled : bool
        Whether to compile the formula.
    """
    out: torch.Tensor = _GatedActivation.apply(gate, up, activation, compiled)  # type: ignore[no-untyped-call]
    return out


def rotary(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, compiled: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary position embedding of the whole head, in two halves (Su et al. 2021, "RoFormer").

    Parameters
    ----------
    query, key : float [1, heads, tokens, width]
        Their numbers of heads may differ.
    cos, sin : float [1, tokens, width]
    compiled : bool
        Whether to compile the formula.

    Returns
    -------
    The rotated query and key, in their own dtypes.
    """
    rotated: tuple[torch.Tensor, torch.Tensor] = _Rotary.apply(query, key, cos, sin, compiled)  # type: ignore[no-untyped-call]
    return rotated


def softmax(scores: torch.Tensor, compiled: bool) -> torch.Tensor:
    """Softmax over the last dimension, without a graph.

    Parameters
    ----------
    scores : float [..., rows, keys]
    compiled : bool
        Whether to compile the formula. From `TORCH_SOFTMAX_FROM` keys on, torch's own kernel is faster.

    Returns
    -------
    float [..., rows, keys]
        In the dtype of ``scores``.
    """
    if not (compiled and _few_keys(scores)):
        return torch.softmax(scores, -1)
    weights: torch.Tensor = compute("softmax", scores, compiled=True)
    return weights


def softmax_backward(weights: torch.Tensor, d_weights: torch.Tensor, compiled: bool) -> torch.Tensor:
    """The gradient of the scores from that of the weights that `softmax` made of them, in the dtype of both."""
    if not (compiled and _few_keys(weights)):
        return torch.ops.aten._softmax_backward_data(d_weights, weights, -1, weights.dtype)
    d_scores: torch.Tensor = compute("softmax_backward", weights, d_weights, compiled=True)
    return d_scores


def _few_keys(scores: torch.Tensor) -> bool:
    """Whether the compiled formulas of softmax are faster than the kernels of torch; float [..., keys]."""
    return scores.shape[-1] < TORCH_SOFTMAX_FROM


def dropout(x: torch.Tensor, rate: float, compiled: bool) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Dropout for use inside an autograd function.

    Parameters
    ----------
    x : float [rows, width], contiguous
    rate : float
        Probability of dropping a value, between 0 and 1.
    compiled : bool
        Whether to compile the formula for a CPU.

    Returns
    -------
    dropped : float [rows, width]
    mask : tensor
        For `dropout_backward`: of the same shape, or a seed.
    gain : float
        The factor by which ``dropped`` must still be multiplied.
    """
    if device_kind(x) != "cpu":
        dropped, mask = torch.native_dropout(x, rate, True)
        return dropped, mask, 1.0
    gain = 1 / (1 - rate)
    if compiled:
        # As on a GPU: what is kept is a function of a seed and the place, which needs no mask in memory.
        seed = torch.tensor(draw_seeds(x, 1))
        return dropout_backward(x, seed, rate), seed, gain
    # On a CPU, one random number per value takes longer than the matrix products of LoRA. So several values share the
    # bits of one number, and the mask is applied by a bitwise "and".
    lane = LANES[x.element_size()]
    numbers = torch.empty(-(-x.numel() * x.element_size() // 8), dtype=torch.int64).random_()
    bits = numbers.view(lane)[: x.numel()].view(x.shape)
    # Without its sign, the number is uniform. Below the threshold, the difference is negative, and its sign fills the
    # lane with ones.
    width = 8 * x.element_size() - 1
    bits.bitwise_and_(2**width - 1).sub_(round(rate * 2**width)).bitwise_right_shift_(width).bitwise_not_()
    return dropout_backward(x, bits, rate), bits, gain


def dropout_backward(d_out: torch.Tensor, mask: torch.Tensor, rate: float) -> torch.Tensor:
    """The gradient of the input of `dropout`, without the gain; float [rows, width]."""
    if device_kind(d_out) != "cpu":
        return torch.ops.aten.native_dropout_backward(d_out, mask, 1 / (1 - rate))
    if mask.shape != d_out.shape:
        halves = halves_of(0 if isinstance(mask, FakeTensor) else int(mask))
        found: torch.Tensor = compute("dropout", d_out, threshold_of(rate), *halves, compiled=True)
        return found
    return d_out.view(mask.dtype).bitwise_and(mask).view(d_out.dtype)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, unit_offset: bool, compiled: bool
    ) -> torch.Tensor:
        out, scale = compute("rms_norm", x, weight, eps, unit_offset, compiled=compiled)
        ctx.save_for_backward(x, weight, scale)
        ctx.unit_offset, ctx.compiled = unit_offset, compiled
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: torch.Tensor) -> Any:
        d_x, d_weight = _norm_gradients(ctx, d_out, None, ctx.needs_input_grad[1])
        return d_x if ctx.needs_input_grad[0] else None, d_weight, None, None, None


class _AddRmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        y: torch.Tensor | None,
        weight: torch.Tensor,
        eps: float,
        unit_offset: bool,
        compiled: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if y is None:
            total, (out, scale) = x, compute("rms_norm", x, weight, eps, unit_offset, compiled=compiled)
        else:
            total, out, scale = compute("add_rms_norm", x, y, weight, eps, unit_offset, compiled=compiled)
        ctx.save_for_backward(total, weight, scale)
        ctx.unit_offset, ctx.compiled, ctx.dtypes = unit_offset, compiled, (x.dtype, None if y is None else y.dtype)
        ctx.set_materialize_grads(False)
        return total.view_as(total), out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_total: torch.Tensor | None, d_out: torch.Tensor | None) -> Any:
        d_weight = None
        if d_out is not None:
            d_total, d_weight = _norm_gradients(ctx, d_out, d_total, ctx.needs_input_grad[2])
        d_x, d_y = (
            d_total.to(dtype) if needed and dtype is not None and d_total is not None else None
            for dtype, needed in zip(ctx.dtypes, ctx.needs_input_grad, strict=False)
        )
        return d_x, d_y, d_weight, None, None, None


def _norm_gradients(
    ctx: Any, d_out: torch.Tensor, d_x: torch.Tensor | None, trained: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The gradient of the input of a norm, added to ``d_x``, and that of its weight if it is trained."""
    x, weight, scale = ctx.saved_tensors
    gradient = compute("rms_norm_backward", d_out, d_x, x, weight, scale, ctx.unit_offset, compiled=ctx.compiled)
    if not trained:
        return gradient, None
    # Only full fine-tuning trains norms, so this sum is not part of the formula.
    normed = x.float() * scale[..., None]
    return gradient, (d_out.float() * normed).flatten(0, -2).sum(0).to(weight.dtype)


class _GatedActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor, activation: str, compiled: bool) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation, ctx.compiled = activation, compiled
        out: torch.Tensor = compute("gated_activation", gate, up, activation, compiled=compiled)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: torch.Tensor) -> Any:
        d_gate, d_up = compute(
            "gated_activation_backward", d_out, *ctx.saved_tensors, ctx.activation, compiled=ctx.compiled
        )
        return d_gate, d_up, None, None


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, compiled: bool
    ) -> Any:
        ctx.save_for_backward(cos, sin)
        ctx.compiled = compiled
        return compute("rotary", query, key, cos, sin, False, compiled=compiled)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_query: torch.Tensor, d_key: torch.Tensor) -> Any:
        # A rotation is orthogonal: its transpose is the rotation by the opposite angle.
        rotated = compute("rotary", d_query, d_key, *ctx.saved_tensors, True, compiled=ctx.compiled)
        return *rotated, None, None, None


def compiler_error(
    device: torch.device,
    dtype: torch.dtype,
    unit_offsets: Collection[bool] = (False, True),
    activations: Collection[str] = ACTIVATIONS,
) -> str | None:
    """None if formulas compile and run on a device, forward and backward; else the first line of the error.

    Parameters
    ----------
    device : torch.device
    dtype : torch.dtype
        Precision of the computation.
    unit_offsets : collection of bool
        The kinds of `rms_norm` to compile; each takes seconds.
    activations : collection of str
        Those of `gated_activation` to compile.
    """
    try:
        with torch.enable_grad():
            for tokens in (3, 5):
                # No random numbers: the caller's generator must not notice the trial.
                values = torch.linspace(-1, 1, tokens * 4 * 8, device=device, dtype=dtype)
                x = values.view(1, 4, tokens, 8).requires_grad_()
                weight = torch.ones(8, device=device, dtype=dtype)
                cos, sin = torch.ones(2, 1, tokens, 8, device=device, dtype=dtype).unbind()
                for unit_offset in unit_offsets:
                    x = rms_norm(x, weight, 1e-6, unit_offset, compiled=True)
                    x, y = add_rms_norm(x, None, weight, 1e-6, unit_offset, compiled=True)
                    x, y = add_rms_norm(x, y, weight, 1e-6, unit_offset, compiled=True)
                    x = x + y
                # Copies, because arguments that share memory would be compiled as a case of their own.
                query, key = rotary(x, x[:, :2] * 1.0, cos, sin.clone(), compiled=True)
                for activation in activations:
                    query = gated_activation(query, query * 1.0, activation, compiled=True)
                torch.autograd.backward((query, key), (query.detach().clone(), key.detach().clone()))
    # The compiler raises errors of many classes, from a missing program to an unsupported device.
    except Exception as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
    return None
