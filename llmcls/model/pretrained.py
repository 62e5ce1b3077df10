"""Pretrained models and tokenizers, from the hub or a folder, in 4-bit, bf16, fp16 or fp32.

`AutoModelForSequenceClassification` builds the backbone and the head of any architecture, but only warns if weights of
the backbone are missing. Here that is an error, which names the tensors.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig

from llmcls.common.user_error import UserError
from llmcls.data.labels import LabelSpace
from llmcls.recipe.schema import ModelSection

log = logging.getLogger(__name__)


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# The autocast mode that computes in the recipe's dtype; float32 leaves the choice to the profile.
AUTOCAST = {"float32": None, "bfloat16": "bf16", "float16": "fp16"}


def load_pretrained(spec: ModelSection, labels: LabelSpace, device: torch.device) -> tuple[Any, list[str]]:
    """Base model with a head for ``labels``, checked for completeness.

    Returns
    -------
    the `transformers` model, and the names of its modules that are new and must be trained whole (the head).

    Raises
    ------
    UserError: not found, no access, missing or mismatched backbone weights (each named).
    """
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
        raise UserError(f"model.use_4bit is true, but no layer of {spec.model_name} was quantized; set it to false")
    return model, new


def load_config(spec: ModelSection, labels: LabelSpace) -> Any:
    """The base's configuration with a head for ``labels``."""
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
    tokenizer = _hub_errors(AutoTokenizer.from_pretrained, spec)(spec.model_name, **_hub_options(spec))
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.bos_token
    if tokenizer.pad_token_id is None:
        raise UserError(f"model.model_name: the tokenizer of {spec.model_name} has no pad, eos, unk or bos token")
    # Texts are cut at data.max_length by us; the tokenizer's own limit would only warn.
    tokenizer.model_max_length = int(1e30)
    return tokenizer


def quantized_layers(model: nn.Module) -> int:
    """How many linear layers hold 4-bit weights."""
    return sum(type(p).__name__ == "Params4bit" for p in model.parameters())


def _four_bit(spec: ModelSection, head: list[str]) -> Any:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
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
    try:
        with torch.device("meta"):
            skeleton = AutoModelForSequenceClassification.from_config(config, trust_remote_code=spec.trust_remote_code)
    except ValueError as error:
        raise UserError(
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
        raise UserError(
            f"model.model_name: {spec.model_name} lacks weights or has them in another shape: {shown}; "
            "training would start from random values there; get the complete checkpoint"
        )
    return head + poolers


def _complete_tokens(model: Any, spec: ModelSection) -> None:
    tokens, rows = len(load_tokenizer(spec)), model.get_input_embeddings().num_embeddings
    if tokens > rows:
        raise UserError(
            f"model.model_name: the tokenizer of {spec.model_name} has {tokens} tokens, its embeddings {rows}; "
            "the two do not belong together"
        )


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
        except UserError:
            raise
        except (OSError, ValueError, ImportError) as error:
            raise _explain(error, spec) from error
        except Exception as error:
            # safetensors raises its own type, which is no subclass of OSError.
            if type(error).__name__ == "SafetensorError":
                raise UserError(f"model.model_name: a weights file of {spec.model_name} is damaged: {error}") from error
            raise

    return loading


def _explain(error: Exception, spec: ModelSection) -> UserError:
    name, text = spec.model_name, str(error)
    where = f"model.model_name: {name!r}"
    if "gated" in text.lower() or "401" in text or "403" in text:
        return UserError(
            f"{where} needs permission: ask for access on its page, then set model.hf_token or HF_TOKEN to your token"
        )
    if "trust_remote_code" in text:
        return UserError(f"{where} runs code of its own; if you trust it, set model.trust_remote_code=true")
    if Path(name).is_dir():
        return UserError(f"{where} is a folder, but no model can be read from it: {_first_sentence(error)}")
    if isinstance(error, OSError):
        return UserError(
            f"{where} is neither a folder here nor in the local cache, and the hub did not give it "
            f"(offline, or no such name); check the name, or download it first and give its folder"
        )
    return UserError(f"{where} cannot be loaded: {_first_sentence(error)}")


def _first_sentence(error: BaseException) -> str:
    return " ".join(str(error).split(". ")[0].split())[:300]
