"""Checks of a training step with layers of the real width: its peak memory, and its speed beside a matrix product."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForSequenceClassification

from llmcls.data.batches import collate, plan_epoch
from llmcls.data.splits import Split
from llmcls.data.steps import global_batch_size
from llmcls.datasets.products import make_corpus
from llmcls.diagnosis.expectation import Expected, expected_step
from llmcls.diagnosis.findings import Finding, Subject, ok, skipped, warning
from llmcls.diagnosis.memory_fit import memory_of
from llmcls.diagnosis.subject import config_of, device_of, dtype_of, inputs_of, recipe_of
from llmcls.engine.accelerator import open_accelerator, prepare, unwrapped
from llmcls.model.build import build_classifier
from llmcls.model.cards import efficiency_file, write_efficiency
from llmcls.model.shrink import shallow
from llmcls.model.tiny import train_tokenizer
from llmcls.recipe.schema import Recipe
from llmcls.results.run_folder import RunFolder
from llmcls.training.loop import optimizer_step
from llmcls.training.optimizer import build_optimizer
from llmcls.training.setup import TrainingSetup

GIB = 2**30
VOCABULARY = 1024


@dataclass(frozen=True)
class Scale:
    """How large the measured step is.

    Attributes
    ----------
    weights : float
        Most weights in its layers.
    tokens : int
        Most tokens of the step.
    warm_up, timed : int
        Steps before and within the measurement.
    side : int
        Rows of the matrices of the probe.
    """

    weights: float
    tokens: int
    warm_up: int
    timed: int
    side: int


# A GPU needs large operands to show what it can do; a CPU must be done in a minute.
SCALES = {"cuda": Scale(3e8, 16384, 3, 10, 8192), "cpu": Scale(3.5e7, 512, 1, 2, 1024)}
# Share of the probe below which a GPU is much slower than it should be.
SLOW = 0.15
TOO_LARGE = 5e8


@dataclass(frozen=True)
class Measured:
    """A measured training step.

    Attributes
    ----------
    layers, depth : int
        Layers of the measured and of the real model.
    texts, length : int
        The micro-batch of the step.
    seconds : float
        Of a step, the median.
    probe : float
        FLOP/s of a matrix product in the same precision, the median of before and after.
    peak_gib : float
        Largest memory during a step, with weights and optimizer.
    expected : Expected
        What the step should cost.
    """

    layers: int
    depth: int
    texts: int
    length: int
    seconds: float
    probe: float
    peak_gib: float
    expected: Expected

    @property
    def share(self) -> float:
        """The step's FLOP/s as a share of those of the probe."""
        return self.expected.flops / self.seconds / self.probe


def peak(subject: Subject) -> Finding:
    """The peak memory of a step against the expected one."""
    device = device_of(subject).type
    if device not in SCALES:
        return skipped(f"memory is not measured on {device}")
    step = _measure(subject)
    if step is None:
        return skipped("one layer of the model is too large to be tried here")
    expected, ratio = step.expected, step.peak_gib / step.expected.peak_gib
    found = (
        f"a step of {step.texts} x {step.length} tokens with {step.layers} of {step.depth} layers took "
        f"{step.peak_gib:.2f} GiB, {ratio:.2f} of the estimate"
    )
    details = {"peak_gib": step.peak_gib, "estimate_gib": expected.peak_gib, "ratio": ratio, "slack": expected.slack}
    if ratio > expected.slack:
        return warning(
            found,
            "the estimates of `check` and `fit` are too low for this model; report it with doctor.json",
            **details,
        )
    return ok(found, **details)


def speed(subject: Subject) -> Finding:
    """Texts per second, and the share of what a matrix product reaches on this device."""
    step = _measure(subject)
    if step is None:
        return skipped("one layer of the model is too large to be tried here")
    rate = step.texts / step.seconds
    real = rate * step.layers / step.depth
    precision = str(dtype_of(subject)).removeprefix("torch.")
    found = (
        f"{rate:.1f} texts/s of {step.length} tokens with {step.layers} of {step.depth} layers, about {real:.1f} with "
        f"all; {step.share:.0%} of the {step.probe / 1e12:.2f} TFLOP/s of a {precision} matrix product"
    )
    details = {
        "texts_per_second": rate, "whole_model_texts_per_second": real, "share": step.share, "probe_flops": step.probe,
        "flops": step.expected.flops, "seconds": step.seconds, "tokens": step.texts * step.length,
    }  # fmt: skip
    if step.expected.least_seconds is not None and subject.recipe is not None:
        # `check` then knows how much of the roofline training reaches on this card.
        efficiency = step.expected.least_seconds / step.seconds
        card = torch.cuda.get_device_name(device_of(subject))
        write_efficiency(efficiency_file(subject.recipe.exp.output_root), card, efficiency)
        details["efficiency"] = efficiency
    if device_of(subject).type == "cuda" and step.share < SLOW:
        return warning(
            found, "see the checks `attention`, `kernels` and `driver`; other programs may use the GPU", **details
        )
    return ok(found, **details)


@functools.cache
def _measure(subject: Subject) -> Measured | None:
    """Train some steps with few layers of the real width; None if not even one layer can be tried."""
    recipe, device, config = recipe_of(subject), device_of(subject), config_of(subject)
    scale = SCALES.get(device.type, SCALES["cpu"])
    depth = config.get_text_config().num_hidden_layers
    in_layer = weights_in_layer(config, recipe.model.trust_remote_code)
    if in_layer > TOO_LARGE:
        return None
    # At least two: the last one is computed at few tokens only.
    layers = min(depth, max(2, int(scale.weights / in_layer)))
    wide = shallow(config, layers, VOCABULARY)
    length = min(recipe.data.max_length, scale.tokens)
    texts = max(1, min(global_batch_size(recipe, 1) * length, scale.tokens) // length)
    while texts > 1 and not _small_enough(expected_step(recipe, wide, [length] * texts, device), device):
        texts //= 2
    recipe = _with_model(subject, wide, length)
    accelerator = open_accelerator(recipe)
    torch.manual_seed(0)
    classifier = build_classifier(recipe, inputs_of(subject).labels, device)
    unprepared: Any = build_optimizer(classifier, recipe, device)
    model, optimizer = prepare(accelerator, classifier, unprepared)
    split = _texts(subject, texts, length)
    labels, packed = inputs_of(subject).labels, unwrapped(model).packs
    setup = TrainingSetup(
        recipe, 0, RunFolder(subject.folder / "wide"), accelerator, labels, split, None, texts, packed, texts * length
    )
    step = next(plan_epoch(split.lengths, setup.batches, 0, 0))
    batches = [collate(split, rows, 0, packed).pinned(device) for rows in step.micro_batches[0]]
    model.train()

    def run() -> float:
        start = time.perf_counter()
        # Reading the loss waits for the device.
        float(optimizer_step(setup, model, optimizer, step, batches, 0).loss_sum)
        return time.perf_counter() - start

    try:
        for _ in range(scale.warm_up):
            run()
        before = probe(device, dtype_of(subject), scale.side)
        seconds = float(np.median([run() for _ in range(scale.timed)]))
        after = probe(device, dtype_of(subject), scale.side)
        largest = _peak(device, model, optimizer, run)
    finally:
        accelerator.free_memory()
    expected = expected_step(recipe, wide, [length] * texts, device)
    return Measured(layers, depth, texts, length, seconds, (before + after) / 2, largest / GIB, expected)


def weights_in_layer(config: Any, trust_remote_code: bool) -> int:
    """The number of weights that one more layer adds to a model of a configuration."""
    counts = []
    for layers in (1, 2):
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(
                shallow(config, layers, VOCABULARY), trust_remote_code=trust_remote_code
            )
        counts.append(sum(p.numel() for p in model.parameters()))
    return max(1, counts[1] - counts[0])


def _small_enough(expected: Expected, device: torch.device) -> bool:
    """Whether a step takes at most half of the memory of a device."""
    return expected.peak_gib * expected.slack < memory_of(device) / 2


def _with_model(subject: Subject, config: Any, length: int) -> Recipe:
    """The recipe with a random model of a configuration, which is saved in the folder of the subject."""
    recipe, folder = recipe_of(subject), subject.folder / "wide"
    torch.manual_seed(0)
    with torch.device(device_of(subject)):
        model = AutoModelForSequenceClassification.from_config(
            config, dtype=dtype_of(subject), trust_remote_code=recipe.model.trust_remote_code
        )
    if recipe.model.trust_remote_code:
        model.register_for_auto_class("AutoModelForSequenceClassification")
    model.save_pretrained(folder)
    train_tokenizer(make_corpus(200, seed=0), VOCABULARY).save_pretrained(folder)
    return replace(
        recipe,
        data=replace(recipe.data, max_length=length),
        model=replace(recipe.model, model_name=str(folder), revision=None, hf_token=None, lora_layers=None),
    )


def _texts(subject: Subject, texts: int, length: int) -> Split:
    """Texts of random tokens and labels, all of one length."""
    rng = np.random.default_rng(0)
    tokens = [rng.integers(1, 500, length, dtype=np.int32) for _ in range(texts)]
    known = inputs_of(subject).train_split.known_labels
    labels = known[rng.integers(0, known.shape[0], texts)]
    table = datasets.Dataset.from_dict({"id": [str(i) for i in range(texts)]})
    return Split("train", "random", tokens, np.full(texts, length, dtype=np.int32), labels, table)


def probe(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """FLOP/s of a matrix product of square matrices, the best of a few.

    Parameters
    ----------
    device : torch.device
    dtype : torch.dtype
    side : int
        Rows and columns.
    """
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        # Reading a number waits for the device.
        float((a @ b)[0, 0])
        best = min(best, time.perf_counter() - start)
    return 2.0 * side**3 / best


def _peak(device: torch.device, model: nn.Module, optimizer: Any, run: Any) -> float:
    """Bytes of memory at the peak of one more step, with weights and optimizer state."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return float(torch.cuda.max_memory_allocated(device))
    held = list(model.parameters()) + list(model.buffers())
    held += [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    changes = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = largest = 0
    for event in sorted(changes, key=lambda e: e.start_ns()):
        live += event.nbytes()
        largest = max(largest, live)
    return float(largest + sum(tensor.nbytes for tensor in held))
