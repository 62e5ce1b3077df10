"""What a training step costs, from a trace of the real model under fake tensors: memory, arithmetic, traffic, kernels.

The trace runs the forward and the backward pass of the classifier that a recipe trains, with its adapter, kernels,
packing and checkpointing, over a micro-batch with the lengths of real texts. No weight is read, and no GPU is needed.

What it cannot see: memory that a kernel reserves inside, apart from that of flash attention; what the allocator loses
by fragmentation; and the copies that an engine makes.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import get_gradient_edge

from llmcls.common.user_error import UserError
from llmcls.model.fake_model import KnownValues, fake_classifier, silence, tensors_of
from llmcls.model.kernel_costs import KernelCost
from llmcls.model.ledger import Ledger
from llmcls.model.losses import build_loss
from llmcls.model.pretrained import AUTOCAST
from llmcls.model.stand_in import DeviceKind, standing_for
from llmcls.recipe.defaults import wants_8bit_optimizer
from llmcls.recipe.schema import Recipe

# What the allocators of torch round up to, in bytes (c10/cuda/CUDACachingAllocator.cpp, kMinBlockSize).
BLOCK = {"cuda": 512, "cpu": 1}
AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TraceError(RuntimeError):
    """A model does what cannot be traced; the message says what, in a few words."""


@dataclass(frozen=True)
class MicroBatch:
    """The shape of a micro-batch.

    Attributes
    ----------
    lengths : tuple of int
        Tokens of each text.
    windows : tuple of int, optional
        Number of texts of each row, if rows are read in windows.
    accumulates : bool
        Whether gradients of an earlier micro-batch of the same step exist.
    """

    lengths: tuple[int, ...]
    windows: tuple[int, ...] | None = None
    accumulates: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of all texts, without padding."""
        return sum(self.lengths)


@dataclass(frozen=True)
class StepCost:
    """What one micro-batch of a training step costs on one device that holds the whole model.

    Attributes
    ----------
    batch : MicroBatch
    layers : int
        Layers of the model.
    weights : int
        Bytes of all weights and buffers.
    layer_weights, outside_weights : int
        Bytes of the largest layer, and of what is outside of the layers.
    trained : int
        Number of trained weights.
    gradients : int
        Bytes of the gradients that exist when the most memory is in use.
    optimizer_state : int
        Bytes of AdamW's moments.
    activations : int
        Bytes of everything else that exists then: what is kept for the backward pass, and temporary tensors.
    weight_casts : int
        Those of the activations that are 16-bit copies of weights, which autocast makes of trained weights.
    kernels : tuple of (KernelCost, int)
        Each kind of kernel, and how often it ran.
    """

    batch: MicroBatch
    layers: int
    weights: int
    layer_weights: int
    outside_weights: int
    trained: int
    gradients: int
    optimizer_state: int
    activations: int
    weight_casts: int
    kernels: tuple[tuple[KernelCost, int], ...]

    @property
    def peak(self) -> int:
        """The most bytes in use at once."""
        return self.weights + self.gradients + self.optimizer_state + self.activations

    @property
    def flops(self) -> int:
        """Operations of matrix products and attention, as executed."""
        return sum(kernel.flops * count for kernel, count in self.kernels)

    @property
    def useful_flops(self) -> int:
        """The same without what is computed a second time to save memory."""
        return sum(kernel.useful_flops * count for kernel, count in self.kernels)

    @property
    def bytes_moved(self) -> int:
        """Bytes that kernels read and write."""
        return sum(kernel.bytes_moved * count for kernel, count in self.kernels)

    @property
    def kernel_count(self) -> int:
        """The number of kernels."""
        return sum(count for _, count in self.kernels)


class StepTracer:
    """Traces steps of one recipe; the model is built once.

    Parameters
    ----------
    recipe : Recipe
    config : `transformers` configuration
        From `llmcls.model.pretrained.load_config`.
    kind : DeviceKind
        The device that would train.

    Attributes
    ----------
    packs : bool
        Whether micro-batches are packed there.
    parameters : int
        Weights of the model without an adapter.

    Raises
    ------
    UserError
        If the model does not fit the recipe.
    TraceError
        If the model cannot be built without weights.
    """

    def __init__(self, recipe: Recipe, config: Any, kind: DeviceKind | None = None) -> None:
        self.recipe, self.labels, self.kind = recipe, int(config.num_labels), kind or DeviceKind()
        # A loss may have constants of its own, which are real tensors.
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._ledger = Ledger(())
        try:
            self._model, self.parameters = fake_classifier(recipe, config, self.kind, self._mode)
        except UserError:
            raise
        # Models of any library may do what cannot be done without values.
        except Exception as error:
            raise TraceError(_in_words(error)) from error
        self.packs = self._model.packs
        self._layers = _layers_of(self._model, config.get_text_config().num_hidden_layers)
        for layer in self._layers:
            for part in layer.children():
                self._watch(part)

    def cost(self, batch: MicroBatch) -> StepCost:
        """Trace the forward and the backward pass of a micro-batch.

        Raises
        ------
        TraceError
            If the model does what cannot be traced.
        """
        ledger = self._ledger = Ledger(batch.lengths, BLOCK.get(self.kind.type, 1))
        trained = [p for p in self._model.parameters() if p.requires_grad]
        try:
            with torch.random.fork_rng(devices=[]), silence(), self._mode:
                weights = ledger.hold(tensors_of(self._model))
                if batch.accumulates:
                    for parameter in trained:
                        parameter.grad = torch.empty_like(parameter)
                    ledger.hold(p.grad for p in trained if p.grad is not None)
                self._run(batch, ledger)
                gradients = ledger.bytes_at_peak(p.grad for p in trained if p.grad is not None)
        except Exception as error:
            raise TraceError(_in_words(error)) from error
        finally:
            self._model.zero_grad(set_to_none=True)
        count = sum(p.numel() for p in trained)
        layer_weights = [sum(t.untyped_storage().nbytes() for t in tensors_of(layer)) for layer in self._layers]
        return StepCost(
            batch=batch,
            layers=len(layer_weights),
            weights=weights,
            layer_weights=max(layer_weights, default=0),
            outside_weights=weights - sum(layer_weights),
            trained=count,
            gradients=gradients,
            # Two moments in float32, or in one byte each.
            optimizer_state=count * (2 if wants_8bit_optimizer(self.recipe, count) else 8),
            activations=ledger.peak - weights - gradients,
            weight_casts=ledger.casts_at_peak,
            kernels=tuple(ledger.kernels.items()),
        )

    def _run(self, batch: MicroBatch, ledger: Ledger) -> None:
        """Run both passes, as `llmcls.training.loop.optimizer_step` does."""
        texts, rows = len(batch.lengths), len(batch.windows or batch.lengths)
        shape = (batch.tokens,) if self.packs else (texts, max(batch.lengths))
        input_ids = torch.empty(shape, dtype=torch.int64)
        multi_label = self.recipe.model.problem_type == "multi_label_classification"
        many = multi_label or self.recipe.data.soft_labels
        targets = torch.empty(rows, self.labels) if many else torch.empty(rows, dtype=torch.int64)
        weight = None if self.recipe.train.pos_weight is None else torch.ones(self.labels)
        loss_of = build_loss(self.recipe.model.problem_type, self.recipe.train, weight)
        dtype = AUTOCAST_DTYPES.get(AUTOCAST[self.recipe.model.torch_dtype] or "")
        with ExitStack() as stack:
            for context in (standing_for(self.kind), KnownValues(batch.lengths), ledger):
                stack.enter_context(context)
            with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                logits = self._model(input_ids, batch.lengths, batch.windows)
            loss = loss_of(logits, targets).sum() * 0.5
            del logits
            ledger.phase = "backward"
            # Given a tensor, the call would be one that function modes replace, and none of them would be active in it.
            torch.autograd.backward(get_gradient_edge(loss), torch.ones_like(loss))

    def _watch(self, part: nn.Module) -> None:
        """Tell the ledger when a part of a layer is computed again in the backward pass."""

        def begins(*_: Any) -> None:
            if self._ledger.phase == "backward":
                self._ledger.phase = "recomputed"

        def ends(*_: Any) -> None:
            if self._ledger.phase == "recomputed":
                self._ledger.phase = "backward"

        # A layer itself is not called again: checkpointing replaces its ``forward``, below the hooks.
        part.register_forward_pre_hook(begins)
        # Checkpointing leaves by an exception as soon as it has what it needs.
        part.register_forward_hook(ends, always_call=True)


def _layers_of(model: nn.Module, depth: int) -> list[nn.Module]:
    """The layers of a model, which an engine shards one by one."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return list(module)
    return []


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
