"""What one operation costs a device: arithmetic, memory traffic, and memory that it needs only while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

# Operations without a kernel: views, and memory that is reserved but not written.
FREE = {
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "device", "diagonal", "empty", "empty_like",
    "empty_permuted", "empty_strided", "expand", "is_same_size", "lift_fresh", "new_empty", "new_empty_strided",
    "permute", "select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unfold",
    "unsqueeze", "view",
}  # fmt: skip
# Operations that only write their result.
WRITING = {
    "arange", "fill", "fill_", "full", "full_like", "new_full", "new_ones", "new_zeros", "ones", "ones_like", "random_",
    "scalar_tensor", "zero_", "zeros", "zeros_like",
}  # fmt: skip
# Operations that read of their first tensor as much as they write.
GATHERING = {"embedding", "gather", "index", "index_select"}
# Where the left matrix of a matrix product is among the arguments.
PRODUCTS = {
    "addmm": 1, "addmm_": 1, "baddbmm": 1, "baddbmm_": 1, "bmm": 0, "gemm_4bit": 0, "linear": 0, "mm": 0,
}  # fmt: skip
# Products of the formulas of `llmcls.model.lora_formulas`, whose second argument are the matrices of the adapters.
LORA_PRODUCTS = {"lora_down", "lora_up", "lora_down_gradient", "lora_input_gradient"}
# Attention: where the query is among the arguments, and where it is said whether attention is causal.
ATTENTION = {
    "_flash_attention_forward": (0, 8),
    "_flash_attention_backward": (1, 11),
    "_scaled_dot_product_flash_attention": (0, 4),
    "_scaled_dot_product_flash_attention_backward": (1, 11),
    "_scaled_dot_product_efficient_attention": (0, 6),
    "_scaled_dot_product_efficient_attention_backward": (1, 11),
    "_scaled_dot_product_flash_attention_for_cpu": (0, 4),
    "_scaled_dot_product_flash_attention_for_cpu_backward": (1, 7),
}
# Queries of a block of the flash kernel, up to which it rounds the length of a text in its backward pass.
FLASH_BLOCK = 128


@dataclass(frozen=True)
class KernelCost:
    """What a kernel does.

    Attributes
    ----------
    name : str
        Of the operation.
    phase : str
        "forward", "backward" or "recomputed": in the backward pass, what the forward pass did before.
    dtype : str
        Precision of the arithmetic.
    flops : int
        Multiplications and additions of matrix products and attention, as executed.
    useful_flops : int
        Those that the model needs: without what is computed again to save memory.
    bytes_moved : int
        Read from and written to the memory of the device.
    """

    name: str
    phase: str
    dtype: str
    flops: int
    useful_flops: int
    bytes_moved: int


def kernel_cost(
    name: str, phase: str, arguments: Sequence[Any], outputs: Sequence[torch.Tensor], lengths: Sequence[int]
) -> KernelCost:
    """The cost of an operation that has a kernel.

    Parameters
    ----------
    name : str
        Of the operation, without its namespace.
    phase : str
        See `KernelCost`.
    arguments : sequence
        Of the operation, lists of tensors taken apart only for the traffic.
    outputs : sequence of torch.Tensor
    lengths : sequence of int
        Tokens of each text of the micro-batch, for packed attention.

    Notes
    -----
    A matrix product of [m, k] and [k, n] takes 2 m k n operations. Attention takes 4 x width for each pair of a query
    and a key that it sees and for each head: half for the scores, half for the mixture. Its backward pass takes twice
    as much, and the flash kernel computes the scores once more (Dao et al. 2022, "FlashAttention", section 3.1).
    """
    inputs = _tensors(arguments)
    # A product may be summed and written in float32 while its factors have 16 bits.
    computed = arguments[PRODUCTS[name]] if name in PRODUCTS else outputs[0] if outputs else inputs[0]
    dtype = str(computed.dtype).removeprefix("torch.")
    flops = useful = 0
    if name in PRODUCTS:
        flops = useful = 2 * outputs[0].numel() * arguments[PRODUCTS[name]].shape[-1]
    elif name in LORA_PRODUCTS or name == "lora_matrix_gradients":
        matrices = outputs if name not in LORA_PRODUCTS else _tensors(arguments[1:2])
        flops = useful = 2 * inputs[0].shape[0] * sum(matrix.numel() for matrix in matrices)
    elif name in ATTENTION:
        forward = 4 * _pairs(name, arguments, lengths)
        flops = useful = forward
        if name.endswith("backward"):
            flops, useful = forward * 5 // 2, forward * 2
    if phase == "recomputed":
        useful = 0
    read = [] if name in WRITING else inputs
    if name in GATHERING:
        read = [*outputs, *inputs[1:]]
    # What is reserved for the backward pass of attention is written once and read once.
    moved = sum(_extent(t) for t in read) + sum(_extent(t) for t in outputs) + 2 * workspace(name, arguments)
    return KernelCost(name, phase, dtype, flops, useful, moved)


def workspace(name: str, arguments: Sequence[Any]) -> int:
    """Bytes that a kernel reserves only while it runs.

    The backward pass of flash attention sums the gradient of the queries in float32, and with grouped heads it first
    computes gradients of keys and values for each query head (mha_varlen_bwd in flash_api.cpp of torch).
    """
    if name not in ("_flash_attention_backward", "_scaled_dot_product_flash_attention_backward"):
        return 0
    query, key = arguments[1], arguments[2]
    if name == "_flash_attention_backward":
        # [tokens, heads, width]
        rows, heads, key_heads = (
            query.shape[0] + FLASH_BLOCK * (arguments[6].shape[0] - 1),
            query.shape[1],
            key.shape[1],
        )
        keys = key.shape[0]
    else:
        # [texts, heads, tokens, width]
        rounded = -(-query.shape[2] // FLASH_BLOCK) * FLASH_BLOCK
        rows, heads, key_heads = query.shape[0] * rounded, query.shape[1], key.shape[1]
        keys = key.shape[0] * key.shape[2]
    width = query.shape[-1]
    step = 32 if width <= 128 else 64
    summed = 4 * rows * heads * (-(-width // step) * step) + 4 * rows * heads
    expanded = 2 * keys * heads * width * key.element_size() if heads != key_heads else 0
    return int(summed + expanded)


def _pairs(name: str, arguments: Sequence[Any], lengths: Sequence[int]) -> int:
    """Query heads x width x the number of pairs of a query and a key that attention looks at."""
    at, causal_at = ATTENTION[name]
    query, key = arguments[at], arguments[at + 1]
    causal = bool(arguments[causal_at]) if len(arguments) > causal_at else False
    if name.startswith("_flash_attention"):
        last_token_only = query.shape[0] == len(lengths) != key.shape[0]
        pairs = sum(n if last_token_only else n * (n + 1) // 2 if causal else n * n for n in lengths)
        return int(query.shape[1] * query.shape[2] * pairs)
    texts, heads, queries, width = query.shape
    keys = key.shape[2]
    return int(texts * heads * width * (queries * (queries + 1) // 2 if causal else queries * keys))


def _tensors(values: Any) -> list[torch.Tensor]:
    """The tensors among arguments, and in lists of them."""
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


def _extent(tensor: torch.Tensor) -> int:
    """Bytes of a tensor in memory: an expanded one is stored once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
