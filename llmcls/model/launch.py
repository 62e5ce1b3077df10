"""Starting Triton kernels with little work of the host.

Triton looks at every argument of every call to find the variant of a kernel that it needs. In a small model a step
starts hundreds of kernels, and the GPU would wait for this. What decides about the variant is known to the callers, so
it is looked up by that, and the variant is started directly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

# Variants that were started before.
_variants: dict[tuple[Any, ...], Any] = {}


def start(
    kernel: Any,
    grid: tuple[int, int, int],
    tensors: Sequence[torch.Tensor],
    varying: tuple[int, ...],
    floats: tuple[float, ...],
    sizes: tuple[int, ...],
    constants: tuple[Any, ...],
    warps: int = 4,
    stages: int = 3,
) -> None:
    """Start a kernel on the current device.

    Parameters
    ----------
    kernel : triton.JITFunction
        Lives as long as the process. Its arguments are, in this order, those that follow.
    grid : (int, int, int)
        Programs in each dimension.
    tensors : sequence of torch.Tensor
    varying : tuple of int
        Numbers below 2^31 that the kernel is told not to specialize.
    floats : tuple of float
    sizes : tuple of int
        Numbers below 2^31. Whether they are 1 or multiples of 16 makes a variant.
    constants : tuple
        Known to the compiler.
    warps, stages : int
        How the compiler parallelizes.
    """
    pointers = [tensor.data_ptr() for tensor in tensors]
    aligned = [pointer % 16 == 0 for pointer in pointers]
    kinds = [1 if size == 1 else 16 if size % 16 == 0 else 0 for size in sizes]
    # Not the kernel itself, whose hash is computed in Python, from its source.
    dtypes = [tensor.dtype for tensor in tensors]
    key = (id(kernel), tensors[0].device, *dtypes, *aligned, *kinds, constants, warps, stages)
    variant = _variants.get(key)
    if variant is not None:
        # Of a tensor, the launcher would ask for its address again, and the driver where that is.
        variant[grid](*pointers, *varying, *floats, *sizes, *constants)
        return
    variant = kernel[grid](*tensors, *varying, *floats, *sizes, *constants, num_warps=warps, num_stages=stages)
    # Triton's interpreter has no variants.
    if variant is not None:
        _variants[key] = variant
