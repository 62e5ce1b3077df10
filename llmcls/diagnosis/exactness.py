"""Checks of results: what the device computes the fast way, against plain float32 on the CPU.

In 16 bits every result is rounded, so a fixed tolerance would be too wide to see an error, or too narrow for the
rounding. Here the same model is also run the plain way on the device, text by text with the modules of transformers and
peft, and the fast way may be a few times as far from the float32 result as that. Weights are amplified, so that an
error in positions, masks or scales makes a difference many times larger than rounding.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from llmcls.diagnosis.findings import Finding, NotApplicable, Subject, fault, ok, warning
from llmcls.diagnosis.subject import config_of, device_of, dtype_of, inputs_of, miniature_of, recipe_of
from llmcls.model.build import build_classifier, packing_request
from llmcls.model.classifier import Classifier
from llmcls.model.packed_attention import attention, choose_kernel, make_pack
from llmcls.model.packed_forward import GAIN, head_shape, packing_in_words

LENGTHS = [5, 2, 9, 1, 14, 30]
# How many times as far from the float32 result the fast way may be as the plain way, and what is rounding in float32.
FACTOR, ROUNDING = 3.0, 2e-5
# From this distance of the plain way on, errors would hide behind rounding.
BLIND = 0.1
USE_BF16 = "use model.torch_dtype=bfloat16 or float32 on this device"
# Errors of attention alone, relative to the largest value.
ATTENTION_TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
REPORT = "set train.{key} to {value} until this is solved, and report it with doctor.json"


@dataclass(frozen=True)
class _Results:
    """Logits, float32 [texts, labels], and the gradients of all trained weights, float32 [weights], on the CPU."""

    logits: torch.Tensor
    gradients: torch.Tensor


@dataclass(frozen=True)
class _Distance:
    """How far results are from the float32 ones: the largest logit, and the gradient as a whole, both relative."""

    logits: float
    gradients: float


def packing(subject: Subject) -> Finding:
    """Packed texts against single ones, without fused kernels."""
    expected, plain = _expected(subject), _distance(subject, _plain(subject))
    model = _classifier(subject, device_of(subject), kernels="off")
    kind = "packed" if model.packs else "padded"
    found = _distance(subject, _run(model, subject, together=True))
    words = f"{kind} texts give the states and gradients of single ones"
    return _verdict(words, found, plain, REPORT.format(key="packing", value="false"), len(expected.gradients))


def fused(subject: Subject) -> Finding:
    """Everything that training uses, packing and fused kernels, against single texts and plain modules."""
    expected, plain = _expected(subject), _distance(subject, _plain(subject))
    model = _classifier(subject, device_of(subject), kernels="auto")
    found = _distance(subject, _run(model, subject, together=True))
    words = "fused kernels give the states and gradients of plain modules"
    return _verdict(words, found, plain, REPORT.format(key="kernels", value="off"), len(expected.gradients))


def last_token(subject: Subject) -> Finding:
    """One query per text with the real heads, in the kernel that training uses, forward and backward."""
    device, dtype = device_of(subject), dtype_of(subject)
    config = config_of(subject)
    found = packing_in_words(config, packing_request(recipe_of(subject), device))
    if found.startswith("padded"):
        raise NotApplicable(f"texts are {found}")
    shape = head_shape(config)
    kernel, _ = choose_kernel(shape, device, dtype)
    generator = torch.Generator().manual_seed(0)
    tokens, texts = sum(LENGTHS), len(LENGTHS)
    inputs = [
        torch.randn(1, heads, tokens, width, generator=generator).to(dtype)
        for heads, width in (
            (shape.heads, shape.width), (shape.key_heads, shape.width), (shape.key_heads, shape.value_width)
        )
    ]  # fmt: skip
    weights = torch.randn(1, texts, shape.heads, shape.value_width, generator=generator)
    last = torch.tensor(LENGTHS).cumsum(0) - 1
    # All queries in float32 on the CPU, of which only the last ones are read.
    query, key, value = (tensor.float().requires_grad_() for tensor in inputs)
    full = attention(query, key, value, make_pack(LENGTHS, torch.device("cpu")), None)[:, last]
    expected = [full.detach(), *torch.autograd.grad((full * weights).sum(), (query, key, value))]
    expected[1] = expected[1][:, :, last]
    query = inputs[0][:, :, last].to(device).requires_grad_()
    key, value = (tensor.to(device).requires_grad_() for tensor in inputs[1:])
    short = attention(query, key, value, make_pack(LENGTHS, device, flash=kernel == "flash"), None)
    computed = [short.detach(), *torch.autograd.grad((short.float() * weights.to(device)).sum(), (query, key, value))]
    distances = [(a.float().cpu() - b).abs().max() / b.abs().max() for a, b in zip(computed, expected, strict=True)]
    # Not Python's max, which loses a NaN.
    off = float(torch.stack(distances).max())
    heads = f"{shape.heads} query and {shape.key_heads} key heads of width {shape.width}"
    if not off <= ATTENTION_TOLERANCE[dtype]:
        return fault(
            f"one query per text ({heads}) gives other results than all queries, off by {off:.0e}",
            REPORT.format(key="packing", value="false"),
            off=off,
        )
    return ok(
        f"one query per text ({heads}) gives the results of all queries, with gradients (off by {off:.0e})", off=off
    )


def _classifier(
    subject: Subject, device: torch.device, kernels: Literal["auto", "off"], alone: bool = False, exact: bool = False
) -> Classifier:
    """The classifier of the miniature with amplified weights and an adapter that has an effect.

    Parameters
    ----------
    subject : Subject
    device : torch.device
    kernels : str
        As in a recipe.
    alone : bool
        Whether texts are read one by one. Then they are not packed, unless that is the only way to read them.
    exact : bool
        Whether in float32.
    """
    recipe = miniature_of(subject).recipe
    model = replace(recipe.model, use_4bit=False, torch_dtype="float32" if exact else recipe.model.torch_dtype)
    wanted = False if alone and not model.bidirectional else recipe.train.packing
    train = replace(recipe.train, kernels=kernels, packing=wanted, gradient_checkpointing=False)
    torch.manual_seed(0)
    classifier = build_classifier(replace(recipe, model=model, train=train), inputs_of(subject).labels, device)
    if not exact:
        classifier.load_state_dict(_weights(subject))
    else:
        _amplify(classifier, dtype_of(subject))
    return classifier.to(device).eval()


@torch.no_grad()
def _amplify(model: nn.Module, stored: torch.dtype) -> None:
    """Amplify the weights, give the adapter an effect, and round what the device stores in fewer bits."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
        elif weight.dim() == 2 and "lora_" not in name and "embed" not in name:
            weight.mul_(GAIN)
        if not weight.requires_grad:
            weight.copy_(weight.to(stored))


@functools.cache
def _exact_model(subject: Subject) -> Classifier:
    return _classifier(subject, torch.device("cpu"), "off", alone=True, exact=True)


def _weights(subject: Subject) -> dict[str, torch.Tensor]:
    return _exact_model(subject).state_dict()


@functools.cache
def _expected(subject: Subject) -> _Results:
    """Text by text, in float32 on the CPU."""
    return _run(_exact_model(subject), subject, together=False, dtype=torch.float32)


@functools.cache
def _plain(subject: Subject) -> _Results:
    """Text by text on the device, in the precision of the recipe."""
    return _run(_classifier(subject, device_of(subject), "off", alone=True), subject, together=False)


def _run(model: Classifier, subject: Subject, together: bool, dtype: torch.dtype | None = None) -> _Results:
    """Logits and gradients of some texts, in one micro-batch or one by one."""
    device = next(model.parameters()).device
    dtype = dtype or dtype_of(subject)
    vocabulary = len(inputs_of(subject).tokenizer)
    texts = (torch.arange(sum(LENGTHS)) * 7 % vocabulary).split(LENGTHS)
    model.zero_grad()
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        if not together:
            logits = torch.cat([model(text[None].to(device), [len(text)]) for text in texts])
        elif model.packs:
            logits = model(torch.cat(texts).to(device), LENGTHS)
        else:
            logits = model(nn.utils.rnn.pad_sequence(list(texts), batch_first=True).to(device), LENGTHS)
    weights = torch.linspace(-1, 1, logits.numel(), device=device).view_as(logits)
    (logits * weights).sum().backward()
    gradients = [p.grad.flatten().float().cpu() for p in model.parameters() if p.requires_grad and p.grad is not None]
    return _Results(logits.detach().float().cpu(), torch.cat(gradients))


def _distance(subject: Subject, found: _Results) -> _Distance:
    expected = _expected(subject)
    logits = float((found.logits - expected.logits).abs().max() / expected.logits.abs().max())
    gradients = float((found.gradients - expected.gradients).norm() / expected.gradients.norm())
    return _Distance(logits, gradients)


def _verdict(claim: str, found: _Distance, plain: _Distance, advice: str, trained: int) -> Finding:
    """The finding about a way of computing, given how far the plain way is from float32."""
    off = (
        f"off by {found.logits:.0e} and {found.gradients:.0e}, single texts in the same precision by "
        f"{plain.logits:.0e} and {plain.gradients:.0e}"
    )
    details = {
        "logits": found.logits, "gradients": found.gradients, "plain_logits": plain.logits,
        "plain_gradients": plain.gradients, "trained": trained,
    }  # fmt: skip
    if not (plain.logits < BLIND and plain.gradients < BLIND):
        return warning(f"cannot be told: single texts are rounded too much themselves ({off})", USE_BF16, **details)
    # Written so that a NaN fails.
    right = found.logits <= FACTOR * plain.logits + ROUNDING and found.gradients <= FACTOR * plain.gradients + ROUNDING
    if not right:
        return fault(f"not true: {claim} ({off})", advice, **details)
    return ok(f"{claim} ({off})", **details)
