"""Checks of what training chooses on this machine for the real architecture: attention, and fused kernels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig

from llmcls.diagnosis.checks import REPORT_IT
from llmcls.diagnosis.findings import Finding, Subject, fault, ok, skipped, warning
from llmcls.diagnosis.subject import LLAMA, config_of, device_of, dtype_of, recipe_of
from llmcls.model.build import packing_request
from llmcls.model.kernel_choice import choose_kernels
from llmcls.model.packed_forward import packing_in_words, try_packing


def attention(subject: Subject) -> Finding:
    """How attention runs: flash kernel, text by text, or padded; and why not better."""
    recipe, device = recipe_of(subject), device_of(subject)
    request = packing_request(recipe, device)
    found = packing_in_words(config_of(subject), request)
    if found.startswith("padded") and request.wanted is not False:
        # A control: a Llama is packed wherever packing works at all.
        control = packing_in_words(LlamaConfig(**LLAMA, pad_token_id=0), replace(request, max_length=1))
        if control.startswith("padded") and device.type in ("cpu", "cuda"):
            return fault(f"packing does not work here, not even for a Llama ({control})", REPORT_IT)
        if request.wanted:
            return fault(found, "leave train.packing and model.bidirectional out, or choose another model")
    if device.type == "cuda" and not found.startswith("packed, flash") and request.wanted is not False:
        return warning(
            found, "it works, but slower: flash attention needs Linux, an NVIDIA card from Ampere on and 16 bits"
        )
    return ok(found)


def kernels(subject: Subject) -> Finding:
    """Which fused kernels training uses, and why not more."""
    recipe, device = recipe_of(subject), device_of(subject)
    if recipe.train.kernels == "off":
        return skipped("train.kernels is off")
    config, trusted = config_of(subject), recipe.model.trust_remote_code
    # Of the real size, because small models are not compiled, but without weights.
    with torch.device("meta"):
        network: Any = AutoModelForSequenceClassification.from_config(config, trust_remote_code=trusted)
    try:
        packed = try_packing(network, packing_request(recipe, device))
    except ValueError:
        # `attention` reports it.
        packed = None
    choice = choose_kernels(network, packed, device, dtype_of(subject), adapted=recipe.model.lora_r > 0)
    if packed is not None:
        packed.detach()
    found = str(choice)
    if device.type == "cuda" and not (choice.fused and choice.compiled):
        return warning(found, "it works, but slower; see the check `compiler`")
    return ok(found, attention=choice.attention, compiled=choice.compiled)
