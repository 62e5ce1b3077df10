"""16-bit copies of the matrices of all adapters, made by one operation at the start of a forward pass.

Adapters are trained in float32 and computed in 16 bits. Rounding each matrix where it is used would start hundreds of
operations in every pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from llmcls.model.fused_lora import lora_linear
from llmcls.model.lora_products import LoraLinear, rounded
from llmcls.model.stand_in import device_kind


class AdapterCopies:
    """The matrices of the adapters of a model in the precision of the computation.

    Parameters
    ----------
    model : nn.Module
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules: list[Any] = [module for module in model.modules() if hasattr(module, "lora_A")]
        self._sources: list[torch.Tensor] = []
        # What is written. It does not count as a change of the copies that an earlier pass has kept: between two passes
        # that belong to the same step, the matrices are the same.
        self._targets: list[torch.Tensor] = []
        self._flat: torch.Tensor | None = None
        self._offsets: dict[int, int] = {}
        self._of: dict[tuple[int, ...], tuple[torch.Tensor, list[torch.Tensor]]] = {}
        self._current = False

    @contextmanager
    def current(self) -> Iterator[None]:
        """Within this context, in which no matrix may change, `of` gives copies where there are any."""
        self._current = self._refresh()
        try:
            yield
        finally:
            self._current = False
            if isinstance(self._flat, FakeTensor):
                # A trace must not find what an earlier one has left.
                self._flat, self._sources, self._targets, self._of = None, [], [], {}

    def of(self, layers: Sequence[LoraLinear], dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """What `llmcls.model.fused_lora.rounded` returns."""
        if not self._current or self._flat is None or self._flat.dtype != dtype:
            return rounded(layers, dtype)
        key = tuple([id(layer.a) for layer in layers])
        found = self._of.get(key)
        if found is None:
            found = self._views(layers)
            if found is None:
                return rounded(layers, dtype)
            self._of[key] = found
        return found

    def _views(self, layers: Sequence[LoraLinear]) -> tuple[torch.Tensor, list[torch.Tensor]] | None:
        """What `of` returns as views of the copies; None if the copies of these layers are not beside each other."""
        assert self._flat is not None
        sizes = [layer.a.numel() for layer in layers]
        places = [self._offsets.get(id(matrix), -1) for layer in layers for matrix in (layer.a, layer.b)]
        first = places[0]
        if -1 in places or places[::2] != [first + sum(sizes[:i]) for i in range(len(sizes))]:
            return None
        a = self._flat[first : first + sum(sizes)].view(-1, layers[0].a.shape[1])
        return a, [
            self._flat[place : place + layer.b.numel()].view(layer.b.shape)
            for layer, place in zip(layers, places[1::2], strict=True)
        ]

    def _refresh(self) -> bool:
        """Copy the matrices; whether that was possible."""
        if not self._modules:
            return False
        kind = self._modules[0].weight.device.type
        if not torch.is_autocast_enabled(kind):
            return False
        dtype, first = torch.get_autocast_dtype(kind), lora_linear(self._modules[0])
        if (
            self._flat is None
            or self._flat.dtype != dtype
            or self._flat.device != self._sources[0].device
            # Several adapters may take turns over one model.
            or (first is not None and first.a is not self._sources[0])
        ):
            layers = [layer for module in self._modules if (layer := lora_linear(module)) is not None]
            sources = [layer.a for layer in layers] + [layer.b for layer in layers]
            # Parts of matrices and such that are not there, as engines that shard leave them, are rounded where they
            # are used, when the engine has collected them.
            whole = all(type(m) in (nn.Parameter, torch.Tensor, FakeTensor) and m.numel() > 0 for m in sources)
            if not sources or not whole or len({m.device for m in sources}) > 1 or device_kind(sources[0]) != "cuda":
                return False
            self._allocate(sources, dtype)
        if not all(matrix.numel() for matrix in self._sources):
            # An engine has begun to shard them since.
            return False
        with torch.no_grad():
            torch._foreach_copy_(self._targets, self._sources)
        return True

    def _allocate(self, sources: list[torch.Tensor], dtype: torch.dtype) -> None:
        """One tensor for all copies: the matrices A of the layers in their order, then the matrices B."""
        sizes = [matrix.numel() for matrix in sources]
        self._flat = torch.empty(sum(sizes), dtype=dtype, device=sources[0].device)
        self._sources, self._of, self._offsets, place = sources, {}, {}, 0
        for matrix, size in zip(sources, sizes, strict=True):
            self._offsets[id(matrix)], place = place, place + size
        parts = self._flat.split(sizes)
        self._targets = [part.view(matrix.shape).data for part, matrix in zip(parts, sources, strict=True)]
