"""Check whether the recipe's model fits into the memory of the device."""

from __future__ import annotations

import psutil
import torch

from llmcls.data.steps import global_batch_size
from llmcls.diagnosis.expectation import expected_step
from llmcls.diagnosis.findings import Finding, Subject, fault, ok, skipped, warning
from llmcls.diagnosis.subject import config_of, device_of
from llmcls.recipe.defaults import micro_batch_tokens

GIB = 2**30
# For the context of a GPU and the fragmentation of its allocator.
RESERVE_GIB = 1.0
ADVICE = (
    "in this order: lower train.micro_batch_tokens, shorten data.max_length, set train.gradient_checkpointing=true, "
    "then model.use_4bit=true; or use a smaller model"
)


def fit(subject: Subject) -> Finding:
    """Whether a step of the real model fits into the memory of the device."""
    recipe = subject.recipe
    if recipe is None:
        return skipped("no recipe was given")
    device = device_of(subject)
    length = recipe.data.max_length
    texts = min(max(1, micro_batch_tokens(recipe) // length), global_batch_size(recipe, 1))
    expected = expected_step(recipe, config_of(subject), [length] * texts, device)
    needed, have = expected.peak_gib + RESERVE_GIB, memory_of(device)
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else f"the {device.type}"
    found = (
        f"a step of {texts} x {length} tokens needs about {needed:.1f} GiB (up to {expected.slack:g} times as much), "
        f"and {place} has {have:.1f}"
    )
    details = {"needed_gib": needed, "have_gib": have, "slack": expected.slack}
    if needed > have:
        gpus = torch.cuda.device_count() if device.type == "cuda" else 1
        if gpus > 1 and needed < have * gpus:
            return warning(
                found, f"shard it over the {gpus} GPUs: accel_configs/fsdp.yaml or fsdp_qlora.yaml", **details
            )
        return fault(found, ADVICE, **details)
    if expected.peak_gib * expected.slack + RESERVE_GIB > have:
        return warning(found, f"it may not fit; if it does not, {ADVICE}", **details)
    return ok(found, **details)


def memory_of(device: torch.device) -> float:
    """GiB of memory of a device; of the machine, for a CPU and for a GPU that shares its memory."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / GIB
    return psutil.virtual_memory().total / GIB
