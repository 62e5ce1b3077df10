"""Several trained adapters over one pretrained model, which is in memory once."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from llmcls.data.labels import LabelSpace
from llmcls.model.build import attach_recipe_kernels, packing_request, prepare_packing_and_pooling
from llmcls.model.classifier import Classifier
from llmcls.model.late_compile import compiling_late
from llmcls.model.pretrained import load_pretrained
from llmcls.recipe.schema import Recipe


@dataclass(frozen=True)
class SavedAdapter:
    """What a run with LoRA saved.

    Attributes
    ----------
    recipe : Recipe
    labels : LabelSpace
    folder : Path
        ``model/`` in the run folder.
    """

    recipe: Recipe
    labels: LabelSpace
    folder: Path


def shareable_base(recipe: Recipe) -> Hashable | None:
    """What two runs must have in common to share a base model; None if a run cannot share its own.

    Adapters, labels, prompts and lengths may differ; how the base is loaded, packed and pooled may not.
    """
    spec, train = recipe.model, recipe.train
    if spec.lora_r == 0:
        return None
    return (
        spec.model_name, spec.revision, spec.trust_remote_code, spec.use_4bit, spec.torch_dtype, spec.pooling,
        spec.bidirectional, train.packing, train.kernels,
    )  # fmt: skip


def load_sharing_classifiers(
    adapters: Sequence[SavedAdapter], device: torch.device, dtype: torch.dtype | None = None
) -> list[Classifier]:
    """One classifier for each adapter, over the same base. Each switches to its adapter before it computes.

    Parameters
    ----------
    adapters : sequence of SavedAdapter
        With the same `shareable_base`. Numbers of labels may differ.
    device : torch.device
    dtype : torch.dtype, optional
        See `llmcls.model.build.build_classifier`.

    Returns
    -------
    list of Classifier
        Not to be used by two threads at the same time. Adapters stay separate from the base, so sums are rounded
        otherwise than with a merged adapter.

    Raises
    ------
    UserError
        If the pretrained model cannot be loaded or is incomplete.
    """
    with compiling_late():
        from peft import PeftModel

    first = adapters[0]
    longest = max(adapter.recipe.data.max_length for adapter in adapters)
    recipe = replace(first.recipe, data=replace(first.recipe.data, max_length=longest))
    network, _ = load_pretrained(recipe.model, first.labels, device)
    request = packing_request(recipe, device, dtype)
    packed = prepare_packing_and_pooling(network, recipe, request)
    names = [f"run_{i}" for i in range(len(adapters))]
    model: Any = PeftModel.from_pretrained(network, str(first.folder), adapter_name=names[0])
    for name, adapter in zip(names[1:], adapters[1:], strict=True):
        _add_adapter(model, name, adapter.folder)
    attach_recipe_kernels(network, model, packed, recipe, request)
    return [
        _Adapted(name, model, packed, adapter.recipe.model.pooling, adapter.recipe.data.window_pooling).eval()
        for name, adapter in zip(names, adapters, strict=True)
    ]


class _Adapted(Classifier):
    """A classifier that shares its model with others, and switches to its own adapter before it computes."""

    def __init__(self, adapter: str, model: nn.Module, *arguments: Any) -> None:
        super().__init__(model, *arguments)
        self.adapter = adapter

    def forward(
        self, input_ids: torch.Tensor, lengths: Sequence[int], windows: Sequence[int] | None = None
    ) -> torch.Tensor:
        """See `Classifier.forward`."""
        if self.model.active_adapter != self.adapter:
            self.model.set_adapter(self.adapter, inference_mode=True)
        return super().forward(input_ids, lengths, windows)


def _add_adapter(model: Any, name: str, folder: Path) -> None:
    """Load an adapter beside the others. Its head may have another number of labels than theirs."""
    from peft.utils import ModulesToSaveWrapper

    saved = load_file(folder / "adapter_model.safetensors")
    heads = {path: m for path, m in model.named_modules() if isinstance(m, ModulesToSaveWrapper)}
    originals = {path: wrapper.original_module for path, wrapper in heads.items()}
    # peft starts a head as a copy of the first one, so that one gets the sizes of the saved one for as long.
    for path, wrapper in heads.items():
        wrapper.original_module = _with_saved_sizes(wrapper.original_module, path, saved)
    try:
        model.load_adapter(str(folder), adapter_name=name)
    finally:
        for path, wrapper in heads.items():
            wrapper.original_module = originals[path]


def _with_saved_sizes(module: nn.Module, path: str, saved: dict[str, torch.Tensor]) -> nn.Module:
    """A copy of a module whose parameters have the shapes of the saved ones."""
    resized = copy.deepcopy(module)
    for owner_path, owner in resized.named_modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            key = ".".join(part for part in (path, owner_path, name) if part)
            if key in saved and saved[key].shape != parameter.shape:
                setattr(owner, name, nn.Parameter(parameter.new_empty(saved[key].shape)))
    return resized
