"""The model: a base with its adapter and head, packed or padded texts, and pooling by length.

A text is pooled at its last real token, not at "the last token that is not the pad id", which is wrong when the
pad id occurs in texts; and no padding mask is built for causal models, which never see what stands to the right.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from llmcls.base import DTYPES, load_base, quantized_layers
from llmcls.labels import LabelSpace
from llmcls.packing import Way, pooled_states, try_packing
from llmcls.pooling import add_attention_query, pool
from llmcls.recipe import Recipe
from llmcls.sections import ModelSection

log = logging.getLogger(__name__)


class Classifier(nn.Module):
    """Token ids and lengths in, one row of logits per text out.

    Wraps the (adapted) sequence-classification model so that every engine sees one module with one
    ``forward``. ``model`` is a `peft.PeftModel` or, for full fine-tuning, a `transformers` model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        # Set by `prepare_base`: whether micro-batches come packed, and how texts and windows are pooled.
        self.packs, self.pooling, self.window_pooling = False, "last", "mean"
        # FSDP's automatic wrapping asks the outermost module which layers to shard.
        self._no_split_modules = list(self.sequence_classifier._no_split_modules or [])
        self.config = self.sequence_classifier.config

    @property
    def sequence_classifier(self) -> nn.Module:
        """The `transformers` model, under its adapter if it has one."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def is_decoder(self) -> bool:
        """Whether this is a causal decoder, whose ``score`` head reads a pooled state."""
        return hasattr(self.sequence_classifier, "score")

    def merge_adapter(self) -> None:
        """Add a float32 adapter to its float32 base, for good: prediction then does less work.

        In fewer bits the sum would be rounded and the logits be others, so there the adapter stays beside.
        """
        weights = [p for n, p in self.named_parameters() if "score" not in n]
        exact = all(w.dtype == torch.float32 for w in weights) and not quantized_layers(self)
        if exact and hasattr(self.model, "merge_and_unload"):
            self.model = self.model.merge_and_unload()

    def forward(
        self, input_ids: torch.Tensor, lengths: Sequence[int], windows: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Logits of texts, right-padded or packed.

        Parameters
        ----------
        input_ids: int64 [batch, tokens], right-padded, or [tokens], one text after the other (only when `packs`).
        lengths: real tokens of each text, at least 1; on the host, where the plan of a pass is made.
        windows: how many of the texts are the windows of one row; their logits become that row's.

        Returns
        -------
        logits: float32 [rows, labels]
        """
        logits = self._text_logits(input_ids, lengths)
        if windows is None:
            return logits
        parts = logits.split(list(windows))
        return torch.stack([p.amax(0) if self.window_pooling == "max" else p.mean(0) for p in parts])

    def _text_logits(self, input_ids: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        network = self.sequence_classifier
        if self.packs and input_ids.dim() == 2:
            input_ids = torch.cat([text[:length] for text, length in zip(input_ids, lengths, strict=True)])
        if input_ids.dim() == 1:
            pooled = pooled_states(network, input_ids, list(lengths), network.score)
        else:
            sizes = torch.tensor(lengths).to(input_ids.device, non_blocking=True)
            real = torch.arange(input_ids.shape[1], device=input_ids.device) < sizes[:, None]
            if not self.is_decoder:
                return network(input_ids=input_ids, attention_mask=real.long()).logits.float()
            # A real token of a causal model never sees the padding to its right, so no mask is needed, and
            # without one attention takes its fastest causal kernel. A KV cache would be built and thrown away.
            hidden = network.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
            if self.pooling == "last":
                # The same as below, without waiting for the device to count the real tokens.
                pooled = hidden[torch.arange(len(sizes), device=hidden.device), sizes - 1]
            else:
                pooled = pool(hidden[real], sizes, self.pooling, network.score)
        # The head decides between close scores: it computes in the precision it is stored in.
        with torch.autocast(device_type=pooled.device.type, enabled=False):
            return network.score(pooled.to(_parameter_dtype(network.score))).float()


def build_classifier(recipe: Recipe, labels: LabelSpace, device: torch.device) -> Classifier:
    """The model of a recipe, ready to train: base, adapter, head, checkpointing. Call under a set seed.

    Raises
    ------
    UserMistake: the base cannot be had, is incomplete, or does not fit the recipe.
    """
    spec = recipe.model
    base, new_modules = load_base(spec, labels, device)
    _check_positions(base, recipe)
    if checkpoints_activations(recipe):
        if not base.supports_gradient_checkpointing:
            raise recipe.mistake(
                "train.gradient_checkpointing", f"is on, but {type(base).__name__} has none; set it to false"
            )
        base.gradient_checkpointing_enable({"use_reentrant": False})
        if recipe.train.checkpoint_layers is not None:
            layers = [m for m in base.modules() if isinstance(m, GradientCheckpointingLayer)]
            for layer in layers[recipe.train.checkpoint_layers :]:
                layer.gradient_checkpointing = False
    packs = prepare_base(base, recipe, device)
    adapted = base if spec.lora_r == 0 else _add_adapter(base, spec, new_modules, recipe)
    return finish_classifier(adapted, recipe, packs)


def prepare_base(base: nn.Module, recipe: Recipe, device: torch.device) -> bool:
    """Set up pooling and packing on a loaded base; returns whether micro-batches will be packed.

    They are as ``train.packing`` says, or where the model and the device can.

    Raises
    ------
    UserMistake: ``train.packing``, a pooling or bidirectional attention is wanted of a model that cannot.
    """
    spec, wanted = recipe.model, recipe.train.packing
    if not hasattr(base, "score"):
        for key, used in (("pooling", spec.pooling != "last"), ("bidirectional", spec.bidirectional)):
            if used:
                raise recipe.mistake(
                    f"model.{key}", f"is for decoders; {type(base).__name__} sees the whole text and pools by itself"
                )
    if spec.bidirectional and wanted is False:
        raise recipe.mistake("model.bidirectional", "needs packed micro-batches; leave train.packing out")
    way = Way(spec.pooling, spec.bidirectional)
    try:
        # Without packing, attention is causal, so a bidirectional model has to be packed or refused.
        packs = try_packing(
            base, recipe.data.max_length, True if spec.bidirectional else wanted, device, DTYPES[spec.torch_dtype], way
        )
    except ValueError as error:
        key = "model.bidirectional" if spec.bidirectional and not wanted else "train.packing"
        raise recipe.mistake(key, f"is true, but {error}; set it to false or leave it out") from error
    if spec.pooling == "attention":
        add_attention_query(base)
    return packs


def finish_classifier(model: nn.Module, recipe: Recipe, packs: bool) -> Classifier:
    """The `Classifier` around a prepared base with its adapter."""
    classifier = Classifier(model)
    classifier.packs, classifier.pooling = packs, recipe.model.pooling
    classifier.window_pooling = recipe.data.window_pooling
    return classifier


def checkpoints_activations(recipe: Recipe) -> bool:
    """Whether activations are recomputed in the backward pass; by default only for 4-bit models."""
    wanted = recipe.train.gradient_checkpointing
    return recipe.model.use_4bit if wanted is None else wanted


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters; a 4-bit parameter counts as the weights it stands for."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole = 0
    for p in model.parameters():
        packed = type(p).__name__ == "Params4bit" and getattr(p, "quant_state", None) is not None
        whole += p.quant_state.shape.numel() if packed else p.numel()
    return trainable, whole


def _add_adapter(base: Any, spec: ModelSection, new_modules: list[str], recipe: Recipe) -> Any:
    from peft import LoraConfig, TaskType, get_peft_model

    targets: list[str] | str = spec.lora_target_modules
    linear = sorted({n.rpartition(".")[2] for n, m in base.base_model.named_modules() if isinstance(m, nn.Linear)})
    if targets == ["all-linear"]:
        targets = "all-linear"
    else:
        names = {n for n, _ in base.named_modules()}
        for target in targets:
            if not any(n == target or n.endswith(f".{target}") for n in names):
                raise recipe.mistake(
                    "model.lora_target_modules",
                    f"names {target!r}, which {spec.model_name} has not; its linear layers are {', '.join(linear)}",
                )
    if spec.lora_layers is not None:
        depth = base.config.get_text_config().num_hidden_layers
        beyond = [i for i in spec.lora_layers if not -depth <= i < depth]
        if beyond or not spec.lora_layers:
            raise recipe.mistake("model.lora_layers", f"is {spec.lora_layers}; the layers are 0 to {depth - 1}")
        # peft takes layers only beside a list of modules.
        targets = linear if targets == "all-linear" else targets
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=spec.lora_r,
        lora_alpha=spec.lora_alpha,
        lora_dropout=spec.lora_dropout,
        target_modules=targets,
        modules_to_save=new_modules,
        use_rslora=spec.lora_variant == "rslora",
        use_dora=spec.lora_variant == "dora",
        layers_to_transform=None if spec.lora_layers is None else sorted({i % depth for i in spec.lora_layers}),
    )
    return get_peft_model(base, config)


def _check_positions(base: Any, recipe: Recipe) -> None:
    """Refuse texts longer than a table of learned positions; rotary models only get a warning."""
    limit = getattr(base.config.get_text_config(), "max_position_embeddings", None)
    if limit is None or recipe.data.max_length <= limit:
        return
    learned = any(
        isinstance(m, nn.Embedding) and ("pos" in n.rpartition(".")[2] or n.endswith("wpe"))
        for n, m in base.named_modules()
    )
    problem = f"is {recipe.data.max_length}; {recipe.model.model_name} was made for {limit} tokens"
    if learned:
        raise recipe.mistake("data.max_length", f"{problem} and has no position beyond; set it to {limit} or less")
    log.warning("data.max_length %s; longer texts may be read badly", problem)


def _parameter_dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype
