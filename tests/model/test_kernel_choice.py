from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from llmcls.model import kernel_choice, kernels
from llmcls.model.kernel_choice import attach_kernels, choose_kernels
from llmcls.model.packed_forward import PackedForward
from tests.model.helpers import CPU
from tests.model.test_kernels import small_network


@pytest.fixture(autouse=True)
def nothing_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test makes its own trials."""
    monkeypatch.setattr(kernel_choice, "_found", {})


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma", "mistral", "smollm3"])
@pytest.mark.parametrize("adapted", [False, True])
def test_llama_like_decoders_are_fused_whole(kind: str, adapted: bool) -> None:
    network = small_network(kind)
    choice = choose_kernels(network, PackedForward(network), CPU, torch.float32, adapted)
    assert (choice.fused, choice.attention, choice.compiled) == (True, True, False)
    assert choice.reason == "a small model on a CPU"


def test_an_encoder_is_fused_without_its_attention() -> None:
    choice = choose_kernels(small_network("bert"), None, CPU, torch.float32, adapted=True)
    assert choice.fused
    assert not choice.attention


def test_the_choice_does_not_depend_on_the_seed_of_the_run() -> None:
    # With the random weights of this seed, rounding alone is more than 1e-5 of the largest gradient.
    config = LlamaConfig(
        vocab_size=100, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_labels=4, pad_token_id=0,
    )  # fmt: skip
    network = LlamaForSequenceClassification(config)
    packed = PackedForward(network, bidirectional=True, last_token_only=False)
    torch.manual_seed(9)
    assert choose_kernels(network, packed, CPU, torch.float32, adapted=True).fused


def wrong(function: Any) -> Any:
    return lambda *arguments, **options: 1.01 * function(*arguments, **options)


def test_kernels_that_differ_are_not_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(kernels, "project", lambda modules, x, *_: [1.01 * module(x) for module in modules])
    network = small_network("llama")
    with caplog.at_level(logging.INFO):
        assert attach_kernels(network, network, PackedForward(network), CPU, torch.float32) is None
    assert "gives other states or gradients with them" in caplog.text
    assert not any("forward" in vars(module) for module in network.modules())


def test_attention_that_differs_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "split_heads", wrong(kernels.split_heads))
    network = small_network("llama")
    choice = choose_kernels(network, PackedForward(network), CPU, torch.float32, adapted=True)
    assert choice.fused
    assert not choice.attention


def test_a_gradient_that_is_not_a_number_is_seen_wherever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    real = kernel_choice._states_and_gradients
    calls: list[int] = []

    def spoilt_when_fused(*arguments: Any) -> list[torch.Tensor]:
        results = real(*arguments)
        calls.append(1)
        if len(calls) % 2 == 0:
            results[-1] = results[-1] * float("nan")
        return results

    monkeypatch.setattr(kernel_choice, "_states_and_gradients", spoilt_when_fused)
    network = small_network("llama")
    choice = choose_kernels(network, PackedForward(network), CPU, torch.float32, adapted=True)
    assert not choice.fused
    assert "off by nan" in choice.reason


def test_the_trial_is_not_repeated_and_draws_no_random_number(monkeypatch: pytest.MonkeyPatch) -> None:
    network, tried = small_network("llama"), []
    real = kernel_choice._try
    monkeypatch.setattr(kernel_choice, "_try", lambda *arguments: tried.append(1) or real(*arguments))
    before = torch.get_rng_state()
    for _ in range(2):
        choose_kernels(network, PackedForward(network), CPU, torch.float32, adapted=True)
    assert len(tried) == 1
    assert torch.equal(torch.get_rng_state(), before)


def test_on_a_gpu_without_a_compiler_a_warning_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernel_choice, "compiler_error", lambda *_: "Cannot find a working triton")
    network = small_network("llama")
    with caplog.at_level(logging.WARNING):
        fused = attach_kernels(network, network, PackedForward(network), torch.device("cuda"), torch.bfloat16)
    assert fused is not None
    assert not fused.compiled
    assert "not compiled (torch cannot compile here: Cannot find a working triton)" in caplog.text


@pytest.mark.parametrize(
    "kind, norms, activations", [("llama", {False}, {"silu"}), ("gemma3_text", {True}, {"gelu_tanh"})]
)
def test_only_what_the_model_has_is_compiled_in_the_trial(
    monkeypatch: pytest.MonkeyPatch, kind: str, norms: set[bool], activations: set[str]
) -> None:
    compiled = []
    monkeypatch.setattr(kernel_choice, "compiler_error", lambda *arguments: compiled.append(arguments[2:]))
    monkeypatch.setattr(kernel_choice, "COMPILED_ON_CPU", 0)
    network = small_network(kind)
    choice = choose_kernels(network, PackedForward(network), CPU, torch.float32, adapted=False)
    assert choice.compiled
    assert compiled == [(norms, activations)]
