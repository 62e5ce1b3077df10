"""The token budget: how many tokens a micro-batch may hold, measured on a GPU or if the recipe says ``auto``.

Larger micro-batches use the device better and dequantize a 4-bit model less often, up to the limit of its memory. The
results do not depend on the budget, so it is measured once per kind of device and stored in the output root.
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
from llmcls.data.labels import LabelSpace
from llmcls.engine.accelerator import shards_state, unwrapped
from llmcls.engine.agreement import from_main
from llmcls.model.memory import GIB, memory_of
from llmcls.model.pretrained import load_config
from llmcls.model.stand_in import kind_of
from llmcls.model.step_trace import MicroBatch, StepTracer, TraceError
from llmcls.recipe.defaults import checkpoints_activations, micro_batch_tokens
from llmcls.recipe.schema import Recipe

log = logging.getLogger(__name__)

# Share of the GPU memory that a trial and the optimizer state may use. The rest is for fragmentation.
MEMORY_SHARE = 0.8
# Bytes of optimizer state per trained weight. The optimizer creates them at its first step, after the trials.
STATE_BYTES = 8
# A larger budget is preferred only if it is faster by this factor.
MIN_SPEEDUP = 1.03
MAX_TOKENS = 1 << 17


def resolve_token_budget(recipe: Recipe, accelerator: Accelerator, model: nn.Module, labels: LabelSpace) -> int:
    """The token budget of a recipe. Collective.

    For ``auto``, and on GPUs by default, the budget is read from ``output_root/budgets.json``, or measured and written
    to this file. Engines that shard the model, and CPUs by default, use ``batch_size`` x ``max_length``.

    Parameters
    ----------
    recipe : Recipe
    accelerator : Accelerator
    model : nn.Module
        As returned by `llmcls.engine.accelerator.prepare`.
    labels : LabelSpace

    Returns
    -------
    int
        Tokens of a micro-batch.
    """
    if recipe.train.micro_batch_tokens == "auto" and shards_state(accelerator):
        log.info("train.micro_batch_tokens: auto is not supported with sharded engines; using batch_size x max_length")
    key = budget_key(recipe, accelerator)
    if key is None:
        return micro_batch_tokens(recipe)
    file = _file(recipe)
    known = from_main(accelerator, read_json(file) if file.exists() else {})
    if key not in known:
        guess = from_main(accelerator, _traced_guess(recipe, labels, accelerator))
        budget = find_token_budget(recipe, unwrapped(model), accelerator, guess)
        if accelerator.num_processes > 1:
            # Each rank measures on its own device; all use the smallest budget.
            budget = int(accelerator.gather(torch.tensor([budget], device=accelerator.device)).min())
        known[key] = budget
        if accelerator.is_main_process:
            write_json(file, known)
    log.info("micro-batches hold up to %d tokens (train.micro_batch_tokens, measured: %s)", known[key], file)
    return int(known[key])


def budget_key(recipe: Recipe, accelerator: Accelerator) -> str | None:
    """The name under which the budget of a recipe is stored; None if it is not measured, but fixed by the recipe."""
    wanted = recipe.train.micro_batch_tokens
    measured = wanted == "auto" or (wanted is None and accelerator.device.type == "cuda")
    return _key(recipe, accelerator) if measured and not shards_state(accelerator) else None


def lower_stored_budget(recipe: Recipe, key: str, tokens: int) -> Path:
    """Store a budget that turned out to be the largest one possible; returns the file.

    Parameters
    ----------
    recipe : Recipe
    key : str
        From `budget_key`.
    tokens : int
        A smaller one that is stored already stays.
    """
    file = _file(recipe)
    known = read_json(file) if file.exists() else {}
    write_json(file, known | {key: min(tokens, known.get(key, tokens))})
    return file


def _file(recipe: Recipe) -> Path:
    return Path(recipe.exp.output_root) / "budgets.json"


def _traced_guess(recipe: Recipe, labels: LabelSpace, accelerator: Accelerator) -> int | None:
    """The largest budget that a trace says fits on this GPU; None without a GPU, on other ranks, or without a trace."""
    if accelerator.device.type != "cuda" or not accelerator.is_main_process:
        return None
    memory = torch.cuda.get_device_properties(accelerator.device).total_memory / GIB
    try:
        tracer = StepTracer(recipe, load_config(recipe.model, labels), kind_of(accelerator.device))
        return tokens_that_fit(tracer, memory)
    except TraceError as error:
        log.info("budgets are tried from the smallest on: %s cannot be traced (%s)", recipe.model.model_name, error)
        return None


def tokens_that_fit(tracer: StepTracer, gib: float) -> int:
    """The largest token budget whose traced step fits on a GPU.

    Parameters
    ----------
    tracer : StepTracer
    gib : float
        Memory of the GPU.

    Returns
    -------
    int
        ``data.max_length`` x a power of two; ``data.max_length`` also if even that does not fit.
    """
    length = tracer.recipe.data.max_length

    def needed(texts: int) -> float:
        return memory_of(tracer.cost(MicroBatch((length,) * texts, accumulates=True))).total

    # Memory grows linearly with the number of texts.
    few, many = 4, 16
    small, large = needed(few), needed(many)
    texts = 1
    while 2 * texts * length <= MAX_TOKENS:
        if small + (2 * texts - few) * (large - small) / (many - few) > MEMORY_SHARE * gib:
            break
        texts *= 2
    return texts * length


def find_token_budget(recipe: Recipe, model: nn.Module, accelerator: Accelerator, guess: int | None = None) -> int:
    """Measure the fastest token budget that fits in memory.

    The number of tokens is halved until they fit, then doubled until memory is nearly full or larger passes are not
    faster, and then halved as long as smaller passes are as fast.

    Parameters
    ----------
    recipe : Recipe
    model : Classifier
        Its gradients are cleared; its weights do not change.
    accelerator : Accelerator
    guess : int, optional
        Where to start: ``data.max_length`` x a power of two. By default, one text of full length.

    Returns
    -------
    int
        Tokens of a micro-batch, at least ``data.max_length``.
    """
    device, length = accelerator.device, recipe.data.max_length
    rng_state, training = torch.get_rng_state(), model.training
    model.train()
    state_bytes = STATE_BYTES * sum(p.numel() for p in model.parameters() if p.requires_grad)
    rates: dict[int, float] = {}

    def rate(tokens: int) -> float:
        """Tokens per second, 0 if the memory does not suffice."""
        if tokens not in rates:
            _forget_peak(device)
            try:
                rates[tokens] = _tokens_per_second(model, accelerator, tokens // length, length)
                if _nearly_full(device, state_bytes):
                    rates[tokens] = 0.0
            except torch.OutOfMemoryError:
                rates[tokens] = 0.0
            model.zero_grad(set_to_none=True)
        return rates[tokens]

    try:
        best = guess or length
        while best > length and not rate(best):
            best //= 2
        tokens = best
        # Two larger budgets in a row that are not faster: still larger ones would only use more memory.
        while tokens < 4 * best and 2 * tokens <= MAX_TOKENS and rate(tokens) and rate(2 * tokens):
            tokens *= 2
            if rate(tokens) > MIN_SPEEDUP * rate(best):
                best = tokens
        while best > length and rate(best) <= MIN_SPEEDUP * rate(best // 2):
            best //= 2
    finally:
        model.zero_grad(set_to_none=True)
        model.train(training)
        torch.set_rng_state(rng_state)
        _forget_peak(device)
    return best


def _forget_peak(device: torch.device) -> None:
    """Release what earlier work left reserved on a GPU: loading and quantizing may need more than training does."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _tokens_per_second(model: nn.Module, accelerator: Accelerator, texts: int, length: int) -> float:
    """The speed of a forward and backward pass over texts of full length, after one pass to warm up."""
    device = accelerator.device
    shape = (texts * length,) if model.packs else (texts, length)
    input_ids = torch.ones(shape, dtype=torch.int64, device=device)
    start = 0.0
    for attempt in range(2):
        if attempt:
            _synchronize(device)
            start = time.perf_counter()
        with accelerator.autocast():
            loss = model(input_ids, [length] * texts).square().sum()
        loss.backward()
    _synchronize(device)
    return texts * length / (time.perf_counter() - start)


def _nearly_full(device: torch.device, state_bytes: int) -> bool:
    """Whether the peak of the GPU memory, with so many bytes for the optimizer, is above `MEMORY_SHARE`."""
    if device.type != "cuda":
        return False
    total = torch.cuda.get_device_properties(device).total_memory
    return torch.cuda.max_memory_reserved(device) + state_bytes > MEMORY_SHARE * total


def _synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def _key(recipe: Recipe, accelerator: Accelerator) -> str:
    """What the budget depends on: the device, the model, and how it is trained."""
    device: Any = accelerator.device.type
    if device == "cuda":
        device = f"{torch.cuda.get_device_name()} {torch.cuda.get_device_properties(0).total_memory >> 30} GiB"
    model, train = recipe.model, recipe.train
    parts = [
        model.model_name, model.use_4bit, model.torch_dtype, model.lora_r, model.lora_target_modules,
        checkpoints_activations(recipe), train.checkpoint_layers, train.packing, recipe.data.max_length,
        accelerator.mixed_precision,
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
    return f"{device}, {Path(model.model_name).name}, {digest}"
