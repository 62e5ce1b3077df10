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

from llmcls.base import DTYPES, load_base, quantized_layers
from llmcls.data import LabelSpace
from llmcls.packing import pooled_states, try_packing
from llmcls.recipe import ModelSection, Recipe

log = logging.getLogger(__name__)


class Classifier(nn.Module):
    """Token ids and lengths in, one row of logits per text out.

    Wraps the (adapted) sequence-classification model so that every engine sees one module with one
    ``forward``. ``model`` is a `peft.PeftModel` or, for full fine-tuning, a `transformers` model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        # Set by `build_classifier` and `load_classifier`: whether micro-batches come packed.
        self.packs = False
        # FSDP's automatic wrapping asks the outermost module which layers to shard.
        self._no_split_modules = list(self.sequence_classifier._no_split_modules or [])
        self.config = self.sequence_classifier.config

    @property
    def sequence_classifier(self) -> nn.Module:
        """The `transformers` model, under its adapter if it has one."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def pools_last_token(self) -> bool:
        """Whether this is a causal decoder, whose ``score`` head reads the last token."""
        return hasattr(self.sequence_classifier, "score")

    def merge_adapter(self) -> None:
        """Add a float32 adapter to its float32 base, for good: prediction then does less work.

        In fewer bits the sum would be rounded and the logits be others, so there the adapter stays beside.
        """
        weights = [p for n, p in self.named_parameters() if "score" not in n]
        exact = all(w.dtype == torch.float32 for w in weights) and not quantized_layers(self)
        if exact and hasattr(self.model, "merge_and_unload"):
            self.model = self.model.merge_and_unload()

    def forward(self, input_ids: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Logits of texts, right-padded or packed.

        Parameters
        ----------
        input_ids: int64 [batch, tokens], right-padded, or [tokens], one text after the other (only when `packs`).
        lengths: real tokens of each text, at least 1; on the host, where the plan of a pass is made.

        Returns
        -------
        logits: float32 [batch, labels]
        """
        network = self.sequence_classifier
        if self.packs and input_ids.dim() == 2:
            input_ids = torch.cat([text[:length] for text, length in zip(input_ids, lengths, strict=True)])
        if input_ids.dim() == 1:
            pooled = pooled_states(network, input_ids, list(lengths))
        else:
            ends = torch.tensor(lengths).to(input_ids.device, non_blocking=True) - 1
            if not self.pools_last_token:
                mask = torch.arange(input_ids.shape[1], device=input_ids.device) <= ends[:, None]
                return network(input_ids=input_ids, attention_mask=mask.long()).logits.float()
            # A real token of a causal model never sees the padding to its right, so no mask is needed, and
            # without one attention takes its fastest causal kernel. A KV cache would be built and thrown away.
            hidden = network.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
            pooled = hidden[torch.arange(len(ends), device=hidden.device), ends]
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
    packs = prepare_packing(base, recipe, device)
    classifier = Classifier(base if spec.lora_r == 0 else _add_adapter(base, spec, new_modules, recipe))
    classifier.packs = packs
    return classifier


def prepare_packing(base: nn.Module, recipe: Recipe, device: torch.device) -> bool:
    """Whether micro-batches will be packed: as ``train.packing`` says, or where the model and the device can.

    Raises
    ------
    UserMistake: ``train.packing`` is true for a model that cannot.
    """
    try:
        return try_packing(base, recipe.data.max_length, recipe.train.packing, device, DTYPES[recipe.model.torch_dtype])
    except ValueError as error:
        raise recipe.mistake("train.packing", f"is true, but {error}; set it to false or leave it out") from error


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
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=spec.lora_r,
        lora_alpha=spec.lora_alpha,
        lora_dropout=spec.lora_dropout,
        target_modules=targets,
        modules_to_save=new_modules,
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
