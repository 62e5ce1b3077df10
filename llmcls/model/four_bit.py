"""Frozen weights in 4 bits: how they are quantized, and how their scales are stored."""

from __future__ import annotations

import importlib.util
import warnings
from functools import cache
from math import prod
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import BitsAndBytesConfig

from llmcls.common.user_error import UserError
from llmcls.model.formulas import TRITON
from llmcls.model.late_compile import compiling_late

# What the scales of a 4-bit model may take more on a GPU, as a share of its memory, so that they need not be unpacked.
SCALES_SHARE = 0.02


def quantization(dtype: torch.dtype, head: list[str]) -> Any:
    """NF4 with double quantization for all linear layers except those in ``head``, as transformers is told.

    Raises
    ------
    UserError
        If bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "model.use_4bit is true, but bitsandbytes is not installed; "
            "run `pip install bitsandbytes` or set model.use_4bit=false"
        )
    keep_blocks_across_rows()
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        # FSDP shards a 4-bit weight as a tensor of this dtype, together with the other weights of this dtype.
        bnb_4bit_quant_storage=dtype,
        llm_int8_skip_modules=head,
    )


@cache
def keep_blocks_across_rows() -> torch.library.Library:
    """Let bitsandbytes dequantize on a CPU what it quantized, wherever a weight comes to be used in this process.

    It quantizes a matrix as one row of blocks, on CPUs as on GPUs. Its kernel for CPUs in version 0.50 dequantizes each
    row of the matrix as if a block began there, which is wrong unless the width is a multiple of the size of a block.

    Returns
    -------
    Library
        While it lives, bitsandbytes' kernel gets such a matrix as one with a block in each row.
    """
    with compiling_late():
        import bitsandbytes.functional  # noqa: F401
    own = torch.library.get_kernel("bitsandbytes::dequantize_4bit", "CPU")

    def dequantize_4bit(
        keys: Any, packed: torch.Tensor, absmax: torch.Tensor, blocksize: int, kind: str, shape: list[int], dtype: Any
    ) -> torch.Tensor:
        if shape[-1] % blocksize == 0:
            out: torch.Tensor = own.call_boxed(keys, packed, absmax, blocksize, kind, shape, dtype)
            return out
        blocks, rest = divmod(prod(shape), blocksize)
        rows = [1, prod(shape)] if rest else [blocks, blocksize]
        out = own.call_boxed(keys, packed, absmax, blocksize, kind, rows, dtype)
        return out.reshape(shape)

    library = torch.library.Library("bitsandbytes", "IMPL")
    with warnings.catch_warnings():
        # That an operation is overridden is what this is for.
        warnings.simplefilter("ignore", UserWarning)
        library.impl("dequantize_4bit", dequantize_4bit, "CPU", with_keyset=True, allow_override=True)
    return library


def quantized_layers(model: nn.Module) -> int:
    """The number of linear layers with 4-bit weights."""
    return sum(type(p).__name__ == "Params4bit" for p in model.parameters())


def quantize_shapes(model: Any, head: list[str], settings: Any) -> None:
    """Replace the linear layers of a model on the meta device as loading in 4 bits does."""
    with compiling_late():
        from bitsandbytes.functional import QuantState
        from bitsandbytes.nn.modules import Linear4bit, Params4bit
        from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    replace_with_bnb_linear(model, head, settings)
    model.is_loaded_in_4bit = True
    storage = settings.bnb_4bit_quant_storage
    with torch.device("meta"):
        for layer in model.modules():
            if not isinstance(layer, Linear4bit):
                continue
            # Double quantization: a byte for the scale of each block of 64 weights, a float for 256 of these scales.
            count = layer.out_features * layer.in_features
            blocks = -(-count // 64)
            scales = QuantState(
                absmax=torch.empty(-(-blocks // 256)), code=torch.empty(256), blocksize=256, dtype=torch.float32
            )
            state = QuantState(
                absmax=torch.empty(blocks, dtype=torch.uint8),
                shape=torch.Size((layer.out_features, layer.in_features)),
                code=torch.empty(16),
                blocksize=64,
                quant_type="nf4",
                dtype=settings.bnb_4bit_compute_dtype,
                offset=torch.empty(()),
                state2=scales,
            )
            packed = torch.empty((count + 1) // (2 * storage.itemsize), 1, dtype=storage)
            layer.weight = Params4bit(
                packed, quant_state=state, quant_type="nf4", quant_storage=storage, bnb_quantized=True
            )
            layer.quant_state = state
            layer.support_avx512bf16_for_cpu = False


def unpack_scales(model: nn.Module, most: int) -> None:
    """Store the scales of a 4-bit model in float32, if that takes little memory; the weights stay the same.

    Double quantization stores the scale of each block of weights in 8 bits (Dettmers et al. 2023, "QLoRA", section 3).
    Unpacking them at each use starts two more kernels for each layer, for which the GPU of a small model would wait.

    Parameters
    ----------
    model : nn.Module
    most : int
        Bytes that may be added.
    """
    states: list[Any] = [getattr(p, "quant_state", None) for p in model.parameters()]
    packed = [state for state in states if state is not None and state.nested]
    if sum(state.absmax.numel() for state in packed) * 3 > most:
        return
    from bitsandbytes.functional import dequantize_blockwise

    for state in packed:
        state.absmax = (dequantize_blockwise(state.absmax, state.state2) + state.offset).float()
        state.nested, state.offset, state.state2 = False, None, None


def dequantized(weight: torch.Tensor, state: Any, dtype: torch.dtype, compiled: bool) -> torch.Tensor:
    """A 4-bit weight as float [outputs, inputs].

    Parameters
    ----------
    weight : tensor
        As bitsandbytes packs it.
    state : bitsandbytes.functional.QuantState
    dtype : torch.dtype
    compiled : bool
        Whether to use a Triton kernel on GPUs: that of bitsandbytes computes the same, but takes the host several times
        as long to start.
    """
    if state.absmax.device != weight.device:
        # An engine may have moved the weight alone.
        state.to(weight.device)
    kernel = TRITON.get("dequantize") if compiled and weight.is_cuda and not isinstance(weight, FakeTensor) else None
    if kernel is not None and not state.nested:
        out: torch.Tensor = kernel(weight.detach(), state.absmax, state.code, state.blocksize, state.shape, dtype)
        return out
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight, state).to(dtype)
