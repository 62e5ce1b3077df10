"""Bookkeeping of the operations of a step: live memory, and what each kernel costs.

Works on fake tensors, which have no values, and on real ones.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from llmcls.model.formulas import FORMULAS, NAMESPACE
from llmcls.model.kernel_costs import FREE, KernelCost, kernel_cost, workspace


class Ledger(TorchDispatchMode):
    """Counts what is allocated and computed while it is active.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each text of the micro-batch.
    block : int
        What the allocator of the device rounds sizes up to, in bytes.

    Attributes
    ----------
    live, peak : int
        Bytes of the tensors that exist now, and the most there ever were.
    casts_at_peak : int
        Bytes of copies of held tensors in another type that existed at the peak.
    kernels : Counter of KernelCost
        How often each kernel ran.
    phase : str
        Of what runs now, see `KernelCost`.
    """

    def __init__(self, lengths: Sequence[int], block: int = 1) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lengths, self.block = list(lengths), block
        self.live = self.peak = self.casts_at_peak = 0
        self.kernels: Counter[KernelCost] = Counter()
        self.phase = "forward"
        self._events = self._peak_event = self._live_casts = 0
        self._held: set[int] = set()
        self._casts: set[int] = set()
        # Address of a storage to its size, the event of its allocation, and the reference that tells of its end.
        self._storages: dict[int, tuple[int, int, Any]] = {}

    def hold(self, tensors: Iterable[torch.Tensor]) -> int:
        """Count tensors that exist already; returns the bytes that were not counted before."""
        before = self.live
        for tensor in tensors:
            self._held.add(self._allocate(tensor))
        return self.live - before

    def bytes_at_peak(self, tensors: Iterable[torch.Tensor]) -> int:
        """Bytes of those of the given tensors that existed at the peak."""
        found = [self._storages[id(t.untyped_storage())] for t in tensors]
        return sum(size for size, born, _ in found if born <= self._peak_event)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        namespace, _, name = function.name().partition("::")
        name = name.partition(".")[0]
        taken_apart = _operations_of(namespace, name, args)
        if taken_apart is not None:
            with self:
                return taken_apart(*args, **kwargs)
        result = function(*args, **kwargs)
        outputs = [t for t in tree_flatten(result)[0] if isinstance(t, torch.Tensor)]
        is_cast = name == "_to_copy" and id(args[0].untyped_storage()) in self._held
        for tensor in outputs:
            self._allocate(tensor, is_cast)
        if name in FREE or function.is_view:
            return result
        self.peak_with(workspace(name, args))
        inputs = (*args, *kwargs.values())
        if outputs or name.endswith("_"):
            self.kernels[kernel_cost(name, self.phase, inputs, outputs, self.lengths)] += 1
        return result

    def peak_with(self, more: int) -> None:
        """Note a moment at which so many bytes exist besides the live tensors."""
        self._events += 1
        if self.live + more > self.peak:
            self.peak, self.casts_at_peak, self._peak_event = self.live + more, self._live_casts, self._events

    def _allocate(self, tensor: torch.Tensor, is_cast: bool = False) -> int:
        """Count a tensor whose storage is new; returns the address of the storage."""
        storage = tensor.untyped_storage()
        address = id(storage)
        if address in self._storages:
            return address
        size = -(-storage.nbytes() // self.block) * self.block
        end = weakref.ref(storage, lambda _: self._free(address))
        self._storages[address] = (size, self._events + 1, end)
        self.live += size
        if is_cast:
            self._casts.add(address)
            self._live_casts += size
        self.peak_with(0)
        return address

    def _free(self, address: int) -> None:
        size = self._storages.pop(address)[0]
        self.live -= size
        if address in self._casts:
            self._casts.remove(address)
            self._live_casts -= size


def _operations_of(namespace: str, name: str, args: Sequence[Any]) -> Callable[..., Any] | None:
    """What an operation does inside, where this is more than one kernel; else None."""
    if namespace == NAMESPACE and args[-1] is False:
        formula = FORMULAS[name][0]
        return lambda *inputs: formula(*inputs[:-1])
    if name == "gemm_4bit":
        return _gemm_4bit
    return None


def _gemm_4bit(
    a: torch.Tensor,
    b: torch.Tensor,
    shape: Sequence[int],
    absmax: torch.Tensor,
    blocksize: int,
    kind: str,
    bias: torch.Tensor | None = None,
    absmax_8bit: torch.Tensor | None = None,
    absmax_code: torch.Tensor | None = None,
    absmax_offset: torch.Tensor | None = None,
) -> torch.Tensor:
    """What bitsandbytes does for a matrix of many rows: dequantize, then multiply."""
    operations = torch.ops.bitsandbytes
    if absmax_8bit is not None and absmax_offset is not None:
        absmax = operations.dequantize_blockwise(absmax_8bit, absmax, absmax_code, 256, torch.float32)
        absmax = absmax + absmax_offset
    return F.linear(a, operations.dequantize_4bit(b, absmax, blocksize, kind, shape, a.dtype), bias)
