"""Load pretrained models and tokenizers, from the hub or a folder, in 4-bit, bf16, fp16 or fp32.

`AutoModelForSequenceClassification` builds the backbone and the head of any architecture, but only warns if weights of
the backbone are missing. Here, missing weights are an error that names the tensors.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from llmcls.common.user_error import UserError
from llmcls.data.labels import LabelSpace
from llmcls.model.four_bit import SCALES_SHARE, quantization, quantize_shapes, quantized_layers, unpack_scales
from llmcls.recipe.schema import ModelSection

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# The autocast mode that computes in the recipe's dtype; float32 leaves the choice to the profile.
AUTOCAST = {"float32": None, "bfloat16": "bf16", "float16": "fp16"}


def load_pretrained(spec: ModelSection, labels: LabelSpace, device: torch.device) -> tuple[Any, list[str]]:
    """Load a pretrained model, add a head for ``labels``, and check that no weight of the backbone is missing.

    Parameters
    ----------
    spec : ModelSection
    labels : LabelSpace
    device : torch.device
        Where a 4-bit model is quantized. Other models are loaded on the CPU.

    Returns
    -------
    model : `transformers` sequence classifier
    new : list of str
        Names of the modules that are not pretrained and must be trained as a whole: the head, and the pooler of an
        encoder if the checkpoint has none.

    Raises
    ------
    UserError
        If the model is not found or not accessible, has no classification head in `transformers`, has missing or
        mismatched backbone weights (each is named), does not match its tokenizer, or cannot be quantized.
    """
    config = load_config(spec, labels)
    head = _head_modules(config, spec)
    # Trained weights are stored in float32, because AdamW's small steps are rounded away in bf16; autocast computes
    # with them in the recipe's dtype. Frozen weights are stored in that dtype.
    dtype = torch.float32 if spec.lora_r == 0 else DTYPES[spec.torch_dtype]
    options: dict[str, Any] = {"config": config, "dtype": dtype, **_hub_options(spec)}
    # Other formats hold Python objects, as code does.
    options["use_safetensors"] = None if spec.trust_remote_code else True
    if spec.use_4bit:
        options["quantization_config"] = quantization(DTYPES[spec.torch_dtype], head)
        # Load and quantize on this device directly, without a copy of the whole model elsewhere.
        options["device_map"] = {"": device}
    load = _hub_errors(AutoModelForSequenceClassification.from_pretrained, spec)

    def read(**more: Any) -> tuple[Any, dict[str, Any]]:
        return load(spec.model_name, output_loading_info=True, ignore_mismatched_sizes=True, **options, **more)

    model, report = read()
    embeddings = next(n for n, m in model.named_modules() if m is model.get_input_embeddings())
    if f"{embeddings}.weight" in report["missing_keys"] and config.tie_word_embeddings:
        # A model with tied weights may store them under the name of the output layer, which a classifier does not have.
        log.info("%s: reading the token embeddings from lm_head.weight", spec.model_name)
        model, report = read(key_mapping={r"^lm_head\.weight$": f"{embeddings}.weight"})
    new = _refuse_incomplete(model, report, head, spec)
    _check_vocabulary(model, spec)
    for name in new:
        model.get_submodule(name).to(torch.float32)
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            # On some processors bitsandbytes repacks a weight at its first evaluation and rounds the block scales to
            # bf16 permanently. Training would continue with changed weights, and `predict` would give other results.
            layer.support_avx512bf16_for_cpu = False
    if spec.use_4bit and not quantized_layers(model):
        raise UserError(f"model.use_4bit is true, but no layer of {spec.model_name} was quantized; set it to false")
    if spec.use_4bit and device.type == "cuda":
        unpack_scales(model, int(SCALES_SHARE * torch.cuda.get_device_properties(device).total_memory))
    return model, new


def skeleton(spec: ModelSection, config: Any) -> tuple[Any, list[str]]:
    """The model that `load_pretrained` returns, on the meta device: shapes and types without values; nothing is read.

    Parameters
    ----------
    spec : ModelSection
    config : `transformers` configuration
        From `load_config`.

    Returns
    -------
    model : `transformers` sequence classifier
    new : list of str
        See `load_pretrained`, for a checkpoint that has a pooler if the model does.
    """
    head = _head_modules(config, spec)
    dtype = torch.float32 if spec.lora_r == 0 else DTYPES[spec.torch_dtype]
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(
            config, dtype=dtype, trust_remote_code=spec.trust_remote_code
        )
    if spec.use_4bit:
        quantize_shapes(model, head, quantization(DTYPES[spec.torch_dtype], head))
    for name in head:
        model.get_submodule(name).to(torch.float32)
    return model, head


def load_config(spec: ModelSection, labels: LabelSpace) -> Any:
    """The configuration of the pretrained model, with a head for ``labels``.

    Raises
    ------
    UserError
        If the configuration is not found, not accessible or not valid.
    """
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
        # For other software that loads the result. Pooling here does not use it.
        config.get_text_config().pad_token_id = load_tokenizer(spec).pad_token_id
    return config


def local_config(spec: ModelSection, labels: int) -> Any | None:
    """The configuration of a model that is in a folder or in the cache; None if it is not, or cannot be read."""
    try:
        return AutoConfig.from_pretrained(
            spec.model_name, num_labels=labels, local_files_only=True, **_hub_options(spec)
        )
    except (OSError, ValueError, ImportError):
        return None


def load_tokenizer(spec: ModelSection) -> Any:
    """The tokenizer of the pretrained model, with a pad token and padding on the right.

    Raises
    ------
    UserError
        If the tokenizer is not found or not accessible, or has no token that can be used for padding.
    """
    tokenizer = _hub_errors(AutoTokenizer.from_pretrained, spec)(spec.model_name, **_hub_options(spec))
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.bos_token
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"model.model_name: the tokenizer of {spec.model_name} has no pad, eos, unk or bos token; "
            "use a tokenizer with one of them"
        )
    # `llmcls.data.encoding` truncates texts at data.max_length. The limit of the tokenizer would only cause warnings.
    tokenizer.model_max_length = int(1e30)
    return tokenizer


def _head_modules(config: Any, spec: ModelSection) -> list[str]:
    """Names of the modules outside the backbone that have parameters; no weight is loaded."""
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
    """Raise if weights other than those of the head are new; return the names of the modules to train as a whole."""
    mismatched = {key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"]}
    new = sorted(set(report["missing_keys"]) | mismatched)
    # The pooler of an encoder is stored in the backbone but belongs to the head. Checkpoints of masked language models
    # do not have it.
    pooler = f"{model.base_model_prefix}.pooler"
    poolers = [pooler] if any(key.startswith(f"{pooler}.") for key in new) else []
    broken = [k for k in new if k.split(".")[0] not in head and not k.startswith(f"{pooler}.")]
    if broken:
        shown = ", ".join(broken[:6]) + (f" and {len(broken) - 6} more" if len(broken) > 6 else "")
        raise UserError(
            f"model.model_name: {spec.model_name} has missing weights, or weights of another shape: {shown}; "
            "training would start from random values there; download the complete checkpoint"
        )
    return head + poolers


def _check_vocabulary(model: Any, spec: ModelSection) -> None:
    """Raise if the tokenizer has more tokens than the model has embeddings."""
    tokens, rows = len(load_tokenizer(spec)), model.get_input_embeddings().num_embeddings
    if tokens > rows:
        raise UserError(
            f"model.model_name: the tokenizer of {spec.model_name} has {tokens} tokens, but the model has embeddings "
            f"for {rows}; use the tokenizer that belongs to the model"
        )


def _hub_options(spec: ModelSection) -> dict[str, Any]:
    """The arguments of every call that may access the hub."""
    options: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code}
    token = spec.hf_token or os.environ.get("HF_TOKEN")
    if token:
        options["token"] = token
    if spec.revision:
        options["revision"] = spec.revision
    return options


def _hub_errors(load: Any, spec: ModelSection) -> Any:
    """Wrap ``load``: errors of the hub and the file system become a `UserError`."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return load(*args, **kwargs)
        except UserError:
            raise
        except (OSError, ValueError, ImportError) as error:
            raise _explain(error, spec) from error
        except Exception as error:
            # The exception of safetensors is not a subclass of OSError.
            if type(error).__name__ == "SafetensorError":
                raise UserError(
                    f"model.model_name: a weights file of {spec.model_name} is damaged ({error}); download it again"
                ) from error
            raise

    return wrapped


def _explain(error: Exception, spec: ModelSection) -> UserError:
    """What an error of the hub or the file system means, and what to do."""
    name, text = spec.model_name, str(error)
    where = f"model.model_name: {name!r}"
    # The name of a model, or of its folder, may have these words and numbers too.
    said = text.replace(name, "").lower()
    if not Path(name).is_dir() and any(word in said for word in ("gated", "401", "403")):
        return UserError(
            f"{where} requires permission; request access on its page, then set model.hf_token or HF_TOKEN"
        )
    if "trust_remote_code" in text:
        return UserError(f"{where} comes with its own Python code; if you trust it, set model.trust_remote_code=true")
    no_safetensors = "no file named" in text or "not appear to have a file named" in text
    if any(Path(name).glob("pytorch_model*.bin")) or (no_safetensors and "safetensors" in text and "json" not in text):
        return UserError(
            f"{where} has no weights as safetensors, and other formats can hold code; save it again with "
            "save_pretrained, or set model.trust_remote_code=true if you trust it"
        )
    if Path(name).is_dir():
        return UserError(f"{where} is a folder without a readable model: {_first_sentence(error)}")
    if isinstance(error, OSError):
        return UserError(
            f"{where} is not a local folder, not in the cache, and cannot be downloaded from the hub "
            "(offline, or no such name); check the name, or download the model and give its folder"
        )
    return UserError(f"{where} cannot be loaded: {_first_sentence(error)}")


def _first_sentence(error: BaseException) -> str:
    """The first sentence of an error message on one line, at most 300 characters."""
    return " ".join(str(error).split(". ")[0].split())[:300]
