from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from llmcls.model import kernels
from llmcls.model.kernels import FusedKernels
from llmcls.model.shrink import shrink
from tests.model.helpers import TEXTS, build, lengths_of, packed_row


def small_network(kind: str, **more: Any) -> Any:
    torch.manual_seed(0)
    config = shrink(AutoConfig.for_model(kind, vocab_size=500, pad_token_id=0, **more))
    return AutoModelForSequenceClassification.from_config(config)


def fused_modules(network: nn.Module, packed: bool = True) -> set[str]:
    """Class names of the modules whose ``forward`` was replaced."""
    fused = FusedKernels(network, compiled=False, packed=packed).attach()
    found = {type(module).__name__ for module in network.modules() if "forward" in vars(module)}
    fused.detach()
    assert not any("forward" in vars(module) for module in network.modules())
    return found


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("llama", {"LlamaRMSNorm", "LlamaMLP", "LlamaAttention", "LlamaDecoderLayer"}),
        ("qwen3", {"Qwen3RMSNorm", "Qwen3MLP", "Qwen3Attention", "Qwen3DecoderLayer"}),
        ("gemma", {"GemmaRMSNorm", "GemmaMLP", "GemmaAttention", "GemmaDecoderLayer"}),
        ("phi3", {"Phi3RMSNorm"}),
        ("bert", set()),
        ("olmo", {"OlmoMLP", "OlmoAttention"}),
    ],
)
def test_modules_are_recognized_by_what_they_compute(kind: str, expected: set[str]) -> None:
    assert fused_modules(small_network(kind)) == expected


def test_attention_is_fused_only_for_packed_rows() -> None:
    assert fused_modules(small_network("llama"), packed=False) == {"LlamaRMSNorm", "LlamaMLP", "LlamaDecoderLayer"}


def test_a_norm_that_computes_something_else_keeps_its_forward() -> None:
    class DoubleNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    network = nn.Sequential(DoubleNorm(), nn.RMSNorm(8, eps=1e-6))
    assert fused_modules(network) == {"RMSNorm"}


def test_a_layer_with_factors_on_its_residual_connections_keeps_its_forward() -> None:
    network = small_network("llama")
    layer = network.model.layers[0]

    class Scaled(type(layer)):  # type: ignore[misc]
        def forward(self, hidden_states: torch.Tensor, **options: Any) -> torch.Tensor:
            mixed, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **options)
            states = hidden_states + 0.5 * mixed
            return states + 0.5 * self.mlp(self.post_attention_layernorm(states))

    for layer in network.model.layers:
        layer.__class__ = Scaled
    assert fused_modules(network) == {"LlamaRMSNorm", "LlamaMLP", "LlamaAttention"}


@pytest.mark.parametrize(
    "overrides", [[], ["lora_r=0"], ["use_4bit=true"], ["pooling=mean"], ["gradient_checkpointing=true"]]
)
def test_a_classifier_has_the_logits_and_gradients_of_its_own_modules(write_recipe, overrides: list[str]) -> None:
    recipe = write_recipe(model__lora_dropout=0.0, model__lora_target_modules=["all-linear"])
    results = []
    for choice in ("auto", "off"):
        model = build(recipe, f"train.kernels={choice}", *overrides).train()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
        assert any("forward" in vars(m) for m in model.modules() if "MLP" in type(m).__name__) == (choice == "auto")
        logits = model(packed_row(TEXTS), lengths_of(TEXTS))
        logits.square().sum().backward()
        results.append((logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (found, found_gradients), (expected, gradients) = results
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert found_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        scale = max(1.0, float(gradient.abs().max()))
        assert torch.allclose(found_gradients[name], gradient, atol=1e-5 * scale), name


def test_in_bf16_logits_are_near_those_of_the_own_modules(write_recipe) -> None:
    recipe = write_recipe(model__lora_dropout=0.0, model__torch_dtype="bfloat16")
    logits = []
    for choice in ("auto", "off"):
        model = build(recipe, f"train.kernels={choice}").eval()
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            logits.append(model(packed_row(TEXTS), lengths_of(TEXTS)))
    assert float((logits[0] - logits[1]).abs().max() / logits[1].abs().max()) < 2e-2


def test_merging_the_adapter_keeps_the_logits(write_recipe) -> None:
    model = build(write_recipe(model__lora_target_modules=["all-linear"])).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        before = model(packed_row(TEXTS), lengths_of(TEXTS))
        model.merge_adapter()
        assert not any("lora_" in name for name, _ in model.named_parameters())
        torch.testing.assert_close(model(packed_row(TEXTS), lengths_of(TEXTS)), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "training, watched, overrides, parts",
    [
        (False, False, [], [20, 20, 10]),
        (False, False, ["lora_r=0"], [20, 20, 10]),
        (True, False, [], [50]),
        # An engine that collects weights must do so as often on every rank.
        (False, True, [], [50]),
        # Weights would be dequantized for each part.
        (False, False, ["use_4bit=true"], [50]),
    ],
)
def test_without_a_backward_pass_an_mlp_is_computed_for_as_many_tokens_as_the_cache_holds(
    write_recipe, monkeypatch: pytest.MonkeyPatch, training: bool, watched: bool, overrides: list[str], parts: list[int]
) -> None:
    model = build(write_recipe(model__lora_target_modules=["all-linear"]), *overrides).eval()
    mlp = next(module for module in model.modules() if type(module).__name__ == "LlamaMLP")
    x = torch.randn(1, 50, mlp.gate_proj.in_features, generator=torch.Generator().manual_seed(0))
    expected, rows = mlp(x), []
    monkeypatch.setattr(kernels, "CACHED", 20 * 2 * 4 * mlp.gate_proj.out_features)
    own = kernels.gated_activation
    monkeypatch.setattr(kernels, "gated_activation", lambda gate, *more: [rows.append(gate), own(gate, *more)][1])
    if watched:
        mlp.down_proj.register_forward_hook(lambda *_: None)
    with torch.set_grad_enabled(training):
        found = mlp(x)
    assert [gate.shape[1] for gate in rows] == parts
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
