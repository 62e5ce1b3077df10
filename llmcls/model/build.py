"""From a recipe to a classifier that can be trained, and from a trained model folder to one that predicts."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from llmcls.common.user_error import UserError
from llmcls.data.labels import LabelSpace
from llmcls.model.adapter import add_adapter
from llmcls.model.classifier import Classifier
from llmcls.model.kernel_choice import attach_kernels
from llmcls.model.late_compile import compiling_late
from llmcls.model.packed_forward import PackedForward, PackingRequest, try_packing
from llmcls.model.pooling import add_attention_query, load_attention_query
from llmcls.model.pretrained import DTYPES, load_pretrained
from llmcls.model.stand_in import DeviceKind
from llmcls.recipe.defaults import checkpoints_activations
from llmcls.recipe.schema import Recipe

log = logging.getLogger(__name__)


def build_classifier(
    recipe: Recipe,
    labels: LabelSpace,
    device: torch.device,
    loading_device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Classifier:
    """The classifier of a recipe, ready to train: pretrained weights, adapter, head, checkpointing.

    New weights are drawn from torch's generator, so call this after seeding it.

    Parameters
    ----------
    recipe : Recipe
    labels : LabelSpace
    device : torch.device
        Where the model will compute.
    loading_device : torch.device, optional
        Where weights are loaded and quantized, if not there.
    dtype : torch.dtype, optional
        What autocast computes in, see `llmcls.engine.accelerator.autocast_dtype`. By default, the recipe's precision.

    Raises
    ------
    UserError
        If the pretrained model cannot be loaded, is incomplete, or does not fit the recipe.
    """
    network, new_modules = load_pretrained(recipe.model, labels, loading_device or device)
    return assemble(network, new_modules, recipe, device, dtype)


def assemble(
    network: Any,
    new_modules: list[str],
    recipe: Recipe,
    device: torch.device | DeviceKind,
    dtype: torch.dtype | None = None,
) -> Classifier:
    """The classifier around a loaded model.

    Parameters
    ----------
    network : `transformers` sequence classifier
        On the meta device if only a step is to be traced.
    new_modules : list of str
        Modules that are trained as a whole, see `load_pretrained`.
    recipe : Recipe
    device : torch.device or DeviceKind
        Where the model will compute. What a `DeviceKind` can do is not tried out.
    dtype : torch.dtype, optional
        See `build_classifier`.

    Raises
    ------
    UserError
        If the model does not fit the recipe.
    """
    _check_positions(network, recipe)
    if checkpoints_activations(recipe):
        if not network.supports_gradient_checkpointing:
            raise recipe.error(
                "train.gradient_checkpointing", f"is on, but {type(network).__name__} has none; set it to false"
            )
        network.gradient_checkpointing_enable({"use_reentrant": False})
        if recipe.train.checkpoint_layers is not None:
            layers = [m for m in network.modules() if isinstance(m, GradientCheckpointingLayer)]
            for layer in layers[recipe.train.checkpoint_layers :]:
                layer.gradient_checkpointing = False
    request = packing_request(recipe, device, dtype)
    packed = prepare_packing_and_pooling(network, recipe, request)
    adapted = network if recipe.model.lora_r == 0 else add_adapter(network, new_modules, recipe)
    attach_recipe_kernels(network, adapted, packed, recipe, request)
    return Classifier(adapted, packed, recipe.model.pooling, recipe.data.window_pooling)


def load_trained_classifier(
    recipe: Recipe, labels: LabelSpace, model_folder: Path, device: torch.device, dtype: torch.dtype | None = None
) -> Classifier:
    """The classifier that a run saved, in the precision it was trained in, its adapter merged if that is exact.

    Parameters
    ----------
    recipe : Recipe
        As the run stored it.
    labels : LabelSpace
    model_folder : Path
        ``model/`` in the run folder.
    device : torch.device
    dtype : torch.dtype, optional
        See `build_classifier`.

    Raises
    ------
    UserError
        If the pretrained model cannot be loaded or is incomplete.
    """
    spec, request = recipe.model, packing_request(recipe, device, dtype)
    if spec.lora_r == 0:
        network, _ = load_pretrained(replace(spec, model_name=str(model_folder), revision=None), labels, device)
        packed = prepare_packing_and_pooling(network, recipe, request)
        if spec.pooling == "attention":
            load_attention_query(network, model_folder)
        model: nn.Module = network
    else:
        with compiling_late():
            from peft import PeftModel

        network, _ = load_pretrained(spec, labels, device)
        packed = prepare_packing_and_pooling(network, recipe, request)
        try:
            model = PeftModel.from_pretrained(network, str(model_folder))
        except torch.OutOfMemoryError:
            raise
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:80]
            raise UserError(
                f"{model_folder} does not hold an adapter for {spec.model_name} ({reason}); restore it, or name the "
                "pretrained model of the training with --base-model"
            ) from error
    classifier = Classifier(model, packed, spec.pooling, recipe.data.window_pooling)
    classifier.merge_adapter()
    attach_recipe_kernels(network, classifier.model, packed, recipe, request)
    return classifier


def packing_request(
    recipe: Recipe, device: torch.device | DeviceKind, dtype: torch.dtype | None = None
) -> PackingRequest:
    """What a recipe asks of packing on a device, where autocast computes in ``dtype``."""
    spec = recipe.model
    return PackingRequest(
        max_length=recipe.data.max_length,
        device=device,
        dtype=dtype or DTYPES[spec.torch_dtype],
        # Without packing, attention is causal, so a bidirectional model has to be packed or refused.
        wanted=True if spec.bidirectional else recipe.train.packing,
        pooling=spec.pooling,
        bidirectional=spec.bidirectional,
    )


def attach_recipe_kernels(
    network: Any, model: nn.Module, packed: PackedForward | None, recipe: Recipe, request: PackingRequest
) -> None:
    """Attach fused kernels, unless the recipe turns them off."""
    if recipe.train.kernels == "auto":
        attach_kernels(network, model, packed, request.device, request.dtype)


def prepare_packing_and_pooling(network: Any, recipe: Recipe, request: PackingRequest) -> PackedForward | None:
    """Set up packing and pooling on a loaded model.

    Returns
    -------
    The attached `PackedForward`, or None if micro-batches are padded.

    Raises
    ------
    UserError
        If the recipe asks for packing, a pooling or bidirectional attention that the model does not allow.
    """
    spec, wanted = recipe.model, recipe.train.packing
    if not hasattr(network, "score"):
        for key, used in (("pooling", spec.pooling != "last"), ("bidirectional", spec.bidirectional)):
            if used:
                raise recipe.error(
                    f"model.{key}",
                    f"is for decoders; {type(network).__name__} sees the whole text and has its own pooling",
                )
    if spec.bidirectional and wanted is False:
        raise recipe.error("model.bidirectional", "needs packed micro-batches; leave train.packing out")
    try:
        packed = try_packing(network, request)
    except ValueError as error:
        key = "model.bidirectional" if spec.bidirectional and not wanted else "train.packing"
        raise recipe.error(key, f"is true, but {error}; set it to false or leave it out") from error
    if spec.pooling == "attention":
        add_attention_query(network)
    return packed


def _check_positions(network: Any, recipe: Recipe) -> None:
    """Refuse texts longer than a table of learned positions; rotary models only get a warning."""
    limit = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    if limit is None or recipe.data.max_length <= limit:
        return
    learned = any(
        isinstance(m, nn.Embedding) and ("pos" in n.rpartition(".")[2] or n.endswith("wpe"))
        for n, m in network.named_modules()
    )
    problem = f"is {recipe.data.max_length}; {recipe.model.model_name} was made for {limit} tokens"
    if learned:
        raise recipe.error("data.max_length", f"{problem} and has no positions beyond; set it to {limit} or less")
    log.warning("data.max_length %s; longer texts may be read badly", problem)
