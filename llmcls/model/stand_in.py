"""Fake tensors on the CPU that stand for tensors on a GPU, so that a step on a GPU can be traced without one.

PyTorch cannot run a backward pass over fake CUDA tensors where there is no GPU. Fake CPU tensors can do it, and the
same operations are called, with these exceptions, which `GpuCalls` replaces by what a GPU does:

- autocast on a GPU computes more functions in float32;
- dropout is one operation that keeps a mask of one byte a value;
- scaled dot-product attention has other kernels, most of which store no scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_kind: ContextVar[str | None] = ContextVar("stand_in", default=None)


@dataclass(frozen=True)
class DeviceKind:
    """What a device can do, so that it need not be at hand to be tried.

    Attributes
    ----------
    type : str
        "cuda" or "cpu".
    flash : bool
        Whether 16-bit attention runs in one flash kernel.
    compiled : bool
        Whether elementwise formulas are compiled.
    """

    type: str = "cuda"
    flash: bool = True
    compiled: bool = True


# What autocast computes in float32 on a GPU but not on a CPU, as far as models call it: aten/src/ATen/autocast_mode.h,
# AT_FORALL_FP32 and AT_FORALL_FP32_SET_OPT_DTYPE.
FLOAT32_ON_GPUS = {
    "cosine_similarity", "cumprod", "cumsum", "exp", "expm1", "group_norm", "layer_norm", "log", "log10", "log1p",
    "log2", "log_softmax", "logsumexp", "norm", "pow", "prod", "reciprocal", "rsqrt", "softmax", "softplus", "sum",
    "tan",
}  # fmt: skip
# The widest head that flash attention computes.
FLASH_WIDTH = 256


def kind_of(device: torch.device) -> DeviceKind:
    """What a device of this machine can do, without trying it."""
    if device.type != "cuda":
        return DeviceKind(device.type, flash=False, compiled=False)
    # Not in builds of torch for Windows, and not for cards before Ampere.
    built = torch.backends.cuda.is_flash_attention_available()
    return DeviceKind("cuda", built and torch.cuda.get_device_capability(device) >= (8, 0))


def device_kind(tensor: torch.Tensor) -> str:
    """The kind of device that a tensor computes on: "cpu", "cuda", ...; of a stand-in, that of what it stands for."""
    return _kind.get() or tensor.device.type


@contextmanager
def standing_for(kind: DeviceKind) -> Iterator[None]:
    """Within this context, CPU tensors stand for tensors on a device of this kind; "cpu" changes nothing."""
    if kind.type == "cpu":
        yield
        return
    token = _kind.set(kind.type)
    try:
        with GpuCalls(kind.flash):
            yield
    finally:
        _kind.reset(token)


class GpuCalls(TorchFunctionMode):
    """Replaces calls of functions that do something else on a CPU by what a GPU does.

    Parameters
    ----------
    flash : bool
        Whether scaled dot-product attention has a flash kernel.
    """

    def __init__(self, flash: bool) -> None:
        super().__init__()
        self.flash = flash

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(function, "__name__", "")
        if name == "dropout":
            return _dropout(*args, **kwargs)
        if name == "scaled_dot_product_attention":
            return _attention(self.flash, *args, **kwargs)
        if name in FLOAT32_ON_GPUS and torch.is_autocast_enabled("cpu"):
            args = [_wide(a) for a in args]
            kwargs = {key: _wide(value) for key, value in kwargs.items()}
        return function(*args, **kwargs)


def _wide(value: Any) -> Any:
    """A 16-bit tensor in float32; other values as they are."""
    sixteen_bits = isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if sixteen_bits else value


def _dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """`torch.nn.functional.dropout` and `torch.dropout` on a GPU."""
    return torch.native_dropout(input, p, True)[0] if training and p else input


def _attention(
    flash: bool,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """`torch.nn.functional.scaled_dot_product_attention` on a GPU: the kernel that torch chooses there.

    Flash attention has no mask and no float32; the memory-efficient kernel has no grouped heads; what neither
    computes is computed as two matrix products and a softmax (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp).
    """
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = (x.to(dtype) if x.dtype == torch.float32 else x for x in (query, key, value))
        attn_mask = attn_mask.to(dtype) if attn_mask is not None and attn_mask.is_floating_point() else attn_mask
    aten = torch.ops.aten
    sixteen_bits, width = query.dtype != torch.float32, query.shape[-1]
    if flash and sixteen_bits and attn_mask is None and width <= FLASH_WIDTH and width == value.shape[-1]:
        out = aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, False, scale=scale)
        return out[0]
    if query.shape[1] == key.shape[1]:
        bias = attn_mask
        if bias is not None:
            if bias.dtype == torch.bool:
                bias = torch.zeros_like(bias, dtype=query.dtype).masked_fill_(bias.logical_not(), float("-inf"))
            bias = bias.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
        trained = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
        out = aten._scaled_dot_product_efficient_attention(
            query, key, value, bias, trained, dropout_p, is_causal, scale=scale
        )
        return out[0]
    out = aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )
    return out[0]
