"""The model: base weights (4-bit, bf16, fp16, fp32), adapter, head, and pooling by length.

`AutoModelForSequenceClassification` gives the base and the head of any architecture; what it does badly is
done here: a backbone that was loaded only in part is refused, a text is pooled at its last real token
instead of at "the last token that is not the pad id", and no padding mask is built for causal models.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmcls import UserMistake
from llmcls.data import LabelSpace
from llmcls.packing import pooled_states, try_packing
from llmcls.recipe import ModelSection, Recipe

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# The autocast mode that computes in the recipe's dtype; float32 leaves the choice to the profile.
AUTOCAST = {"float32": None, "bfloat16": "bf16", "float16": "fp16"}


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


def load_base(spec: ModelSection, labels: LabelSpace, device: torch.device) -> tuple[Any, list[str]]:
    """Base model with a head for ``labels``, checked for completeness.

    Returns
    -------
    the `transformers` model, and the names of its modules that are new and must be trained whole (the head).

    Raises
    ------
    UserMistake: not found, no access, missing or mismatched backbone weights (each named).
    """
    from transformers import AutoModelForSequenceClassification

    config = load_config(spec, labels)
    head = _head_modules(config, spec)
    # Weights that are trained are kept in float32 (AdamW's small steps vanish in bf16) and computed with in the
    # recipe's dtype by autocast; frozen ones are stored in it.
    dtype = torch.float32 if spec.lora_r == 0 else DTYPES[spec.torch_dtype]
    options: dict[str, Any] = {"config": config, "dtype": dtype, **_hub_options(spec)}
    if spec.use_4bit:
        options["quantization_config"] = _four_bit(spec, head)
        # Quantized where it will run: a round trip over the CPU would need the whole model in its memory.
        options["device_map"] = {"": device}
    load = _hub_errors(AutoModelForSequenceClassification.from_pretrained, spec)

    def read(**more: Any) -> tuple[Any, dict[str, Any]]:
        return load(spec.model_name, output_loading_info=True, ignore_mismatched_sizes=True, **options, **more)

    model, report = read()
    embeddings = next(n for n, m in model.named_modules() if m is model.get_input_embeddings())
    if f"{embeddings}.weight" in report["missing_keys"] and config.tie_word_embeddings:
        # Saved from a tied model under the name of the output layer, which a classifier does not have.
        log.info("%s: token embeddings are stored as lm_head.weight; read from there", spec.model_name)
        model, report = read(key_mapping={r"^lm_head\.weight$": f"{embeddings}.weight"})
    new = _refuse_incomplete(model, report, head, spec)
    _complete_tokens(model, spec)
    for name in new:
        model.get_submodule(name).to(torch.float32)
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            # On some processors bitsandbytes repacks a weight at its first evaluation, rounding the block scales to
            # bf16 for good: training would go on with other weights than it began with, and predict would differ.
            layer.support_avx512bf16_for_cpu = False
    if spec.use_4bit and not quantized_layers(model):
        raise UserMistake(f"model.use_4bit is true, but no layer of {spec.model_name} was quantized; set it to false")
    return model, new


def load_config(spec: ModelSection, labels: LabelSpace) -> Any:
    """The base's configuration with a head for ``labels``."""
    from transformers import AutoConfig

    kind = spec.problem_type if spec.problem_type != "binary_classification" else "single_label_classification"
    config = _hub_errors(AutoConfig.from_pretrained, spec)(
        spec.model_name,
        num_labels=len(labels.names),
        id2label=dict(enumerate(labels.names)),
        label2id={name: i for i, name in enumerate(labels.names)},
        problem_type=kind,
        **_hub_options(spec),
    )
    if config.get_text_config().pad_token_id is None:
        # Only so that other software can load the result; our pooling never looks for it.
        config.get_text_config().pad_token_id = load_tokenizer(spec).pad_token_id
    return config


def load_tokenizer(spec: ModelSection) -> Any:
    """The base's tokenizer, padding on the right, with a pad token."""
    from transformers import AutoTokenizer

    tokenizer = _hub_errors(AutoTokenizer.from_pretrained, spec)(spec.model_name, **_hub_options(spec))
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.bos_token
    if tokenizer.pad_token_id is None:
        raise UserMistake(f"model.model_name: the tokenizer of {spec.model_name} has no pad, eos, unk or bos token")
    # Texts are cut at data.max_length by us; the tokenizer's own limit would only warn.
    tokenizer.model_max_length = int(1e30)
    return tokenizer


def quantized_layers(model: nn.Module) -> int:
    """How many linear layers hold 4-bit weights."""
    return sum(type(p).__name__ == "Params4bit" for p in model.parameters())


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters; a 4-bit parameter counts as the weights it stands for."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole = 0
    for p in model.parameters():
        packed = type(p).__name__ == "Params4bit" and getattr(p, "quant_state", None) is not None
        whole += p.quant_state.shape.numel() if packed else p.numel()
    return trainable, whole


def _four_bit(spec: ModelSection, head: list[str]) -> Any:
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserMistake(
            "model.use_4bit is true, but bitsandbytes is not installed; "
            "run `pip install bitsandbytes` or set model.use_4bit=false"
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[spec.torch_dtype],
        # FSDP shards a 4-bit weight as if it were a tensor of this type, next to weights of that type.
        bnb_4bit_quant_storage=DTYPES[spec.torch_dtype],
        llm_int8_skip_modules=head,
    )


def _head_modules(config: Any, spec: ModelSection) -> list[str]:
    """Names of the modules outside the backbone that hold parameters, without loading a weight."""
    from transformers import AutoModelForSequenceClassification

    try:
        with torch.device("meta"):
            skeleton = AutoModelForSequenceClassification.from_config(config, trust_remote_code=spec.trust_remote_code)
    except ValueError as error:
        raise UserMistake(
            f"model.model_name: {spec.model_name} ({config.model_type}) has no classification head "
            f"in transformers: {_first_sentence(error)}"
        ) from None
    backbone = skeleton.base_model_prefix
    return [n for n, m in skeleton.named_children() if n != backbone and any(True for _ in m.parameters())]


def _refuse_incomplete(model: Any, report: dict[str, Any], head: list[str], spec: ModelSection) -> list[str]:
    """Stop when anything but the head is new; returns the modules to train whole."""
    mismatched = {key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"]}
    new = sorted(set(report["missing_keys"]) | mismatched)
    # An encoder's pooler sits in the backbone but belongs to the head: masked-language checkpoints lack it.
    pooler = f"{model.base_model_prefix}.pooler"
    poolers = [pooler] if any(key.startswith(f"{pooler}.") for key in new) else []
    broken = [k for k in new if k.split(".")[0] not in head and not k.startswith(f"{pooler}.")]
    if broken:
        shown = ", ".join(broken[:6]) + (f" and {len(broken) - 6} more" if len(broken) > 6 else "")
        raise UserMistake(
            f"model.model_name: {spec.model_name} lacks weights or has them in another shape: {shown}; "
            "training would start from random values there; get the complete checkpoint"
        )
    return head + poolers


def _complete_tokens(model: Any, spec: ModelSection) -> None:
    tokens, rows = len(load_tokenizer(spec)), model.get_input_embeddings().num_embeddings
    if tokens > rows:
        raise UserMistake(
            f"model.model_name: the tokenizer of {spec.model_name} has {tokens} tokens, its embeddings {rows}; "
            "the two do not belong together"
        )


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


def _hub_options(spec: ModelSection) -> dict[str, Any]:
    options: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code}
    token = spec.hf_token or os.environ.get("HF_TOKEN")
    if token:
        options["token"] = token
    if spec.revision:
        options["revision"] = spec.revision
    return options


def _hub_errors(load: Any, spec: ModelSection) -> Any:
    """``load`` with the hub's and the file system's errors turned into one sentence."""

    def loading(*args: Any, **kwargs: Any) -> Any:
        try:
            return load(*args, **kwargs)
        except UserMistake:
            raise
        except (OSError, ValueError, ImportError) as error:
            raise _explain(error, spec) from error
        except Exception as error:
            # safetensors raises its own type, which is no subclass of OSError.
            if type(error).__name__ == "SafetensorError":
                raise UserMistake(
                    f"model.model_name: a weights file of {spec.model_name} is damaged: {error}"
                ) from error
            raise

    return loading


def _explain(error: Exception, spec: ModelSection) -> UserMistake:
    name, text = spec.model_name, str(error)
    where = f"model.model_name: {name!r}"
    if "gated" in text.lower() or "401" in text or "403" in text:
        return UserMistake(
            f"{where} needs permission: ask for access on its page, then set model.hf_token or HF_TOKEN to your token"
        )
    if "trust_remote_code" in text:
        return UserMistake(f"{where} runs code of its own; if you trust it, set model.trust_remote_code=true")
    if Path(name).is_dir():
        return UserMistake(f"{where} is a folder, but no model can be read from it: {_first_sentence(error)}")
    if isinstance(error, OSError):
        return UserMistake(
            f"{where} is neither a folder here nor in the local cache, and the hub did not give it "
            f"(offline, or no such name); check the name, or download it first and give its folder"
        )
    return UserMistake(f"{where} cannot be loaded: {_first_sentence(error)}")


def _first_sentence(error: BaseException) -> str:
    return " ".join(str(error).split(". ")[0].split())[:300]


def _parameter_dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype
