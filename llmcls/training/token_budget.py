"""The budget: how many tokens a micro-batch may hold, found by trying (``train.micro_batch_tokens: auto``).

Larger micro-batches keep a device busier and dequantize a 4-bit base less often, until memory ends. Results do not
depend on the budget, so it may be found once on each kind of machine, and is remembered beside the runs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from llmcls.common.files import read_json, write_json
from llmcls.engine.accelerator import shards_state, unwrapped
from llmcls.recipe.defaults import micro_batch_tokens
from llmcls.recipe.schema import Recipe

log = logging.getLogger(__name__)


# Of a GPU's memory; the rest is for the optimizer's state, which the first step makes, and for fragments.
MEMORY_SHARE = 0.8
# A larger budget must be faster by this factor to be worth its memory.
WORTH = 1.03
LARGEST = 1 << 17


def resolve_token_budget(recipe: Recipe, accelerator: Accelerator, model: nn.Module) -> int:
    """The recipe's budget; ``auto`` is looked up in ``output_root/budgets.json``, or found now and written there."""
    wanted = recipe.train.micro_batch_tokens
    if wanted != "auto":
        return micro_batch_tokens(recipe)
    if shards_state(accelerator):
        log.info("train.micro_batch_tokens: auto is not supported with sharded engines; using batch_size x max_length")
        return micro_batch_tokens(recipe)
    file = Path(recipe.exp.output_root) / "budgets.json"
    key = _situation(recipe, accelerator)
    known = read_json(file) if file.exists() else {}
    accelerator.wait_for_everyone()
    if key not in known:
        found = find_token_budget(recipe, unwrapped(model), accelerator)
        if accelerator.num_processes > 1:
            # The smallest of all ranks: each has tried on its own device.
            found = int(accelerator.gather(torch.tensor([found], device=accelerator.device)).min())
        known[key] = found
        if accelerator.is_main_process:
            write_json(file, known)
    log.info("micro-batches hold up to %d tokens (train.micro_batch_tokens: auto, %s)", known[key], file)
    return int(known[key])


def find_token_budget(recipe: Recipe, model: nn.Module, accelerator: Accelerator) -> int:
    """Double the tokens of a pass while it fits and pays; returns the fastest budget that fitted."""
    device, length = accelerator.device, recipe.data.max_length
    state, training = torch.get_rng_state(), model.training
    model.train()
    best, best_rate = length, 0.0
    try:
        tokens = length
        while tokens <= LARGEST:
            try:
                rate = _tokens_per_second(model, accelerator, tokens // length, length)
            except torch.OutOfMemoryError:
                break
            if _nearly_full(device):
                break
            if rate > WORTH * best_rate:
                best, best_rate = tokens, rate
            elif tokens >= 4 * best:
                # Twice in a row without a gain: what follows costs memory only.
                break
            tokens *= 2
    finally:
        model.zero_grad(set_to_none=True)
        model.train(training)
        torch.set_rng_state(state)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return best


def _tokens_per_second(model: nn.Module, accelerator: Accelerator, texts: int, length: int) -> float:
    """Of a forward and backward pass over texts of full length, after one to warm up."""
    device = accelerator.device
    shape = (texts * length,) if model.packs else (texts, length)
    input_ids = torch.ones(shape, dtype=torch.int64, device=device)
    began = 0.0
    for attempt in range(2):
        if attempt:
            _wait(device)
            began = time.perf_counter()
        with accelerator.autocast():
            loss = model(input_ids, [length] * texts).square().sum()
        loss.backward()
    _wait(device)
    return texts * length / (time.perf_counter() - began)


def _nearly_full(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    return torch.cuda.max_memory_reserved() > MEMORY_SHARE * torch.cuda.get_device_properties(device).total_memory


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _situation(recipe: Recipe, accelerator: Accelerator) -> str:
    """What the answer depends on: the device, the model and how it is trained."""
    device: Any = accelerator.device.type
    if device == "cuda":
        device = f"{torch.cuda.get_device_name()} {torch.cuda.get_device_properties(0).total_memory >> 30} GiB"
    model, train = recipe.model, recipe.train
    parts = [
        model.model_name, model.use_4bit, model.torch_dtype, model.lora_r, model.lora_target_modules,
        train.gradient_checkpointing, train.checkpoint_layers, train.packing, recipe.data.max_length,
        accelerator.mixed_precision,
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
    return f"{device}, {Path(model.model_name).name}, {digest}"
