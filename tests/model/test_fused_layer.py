"""A whole decoder layer against its modules, with the formulas in place of the kernels; tests/cuda runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from llmcls.model import (
    adapter_copies,
    fused_layer,
    fused_lora,
    fused_ops,
    kernels,
    lora_products,
    packed_attention,
)
from llmcls.model.formulas import FORMULAS
from llmcls.model.kernels import FusedKernels
from llmcls.model.packed_forward import PackedForward

LENGTHS = [7, 4, 4, 1]
TOKENS = torch.arange(sum(LENGTHS)) % 50 + 1
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@torch.autocast("cpu", enabled=False)
def text_by_text(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Causal attention of [tokens, heads, width], or of one query per text, in each text alone, in float32."""
    sizes = [1] * len(LENGTHS) if len(query) == len(LENGTHS) else LENGTHS
    groups, outs = query.shape[1] // key.shape[1], []
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    for parts in zip(query.split(sizes), key.split(LENGTHS), value.split(LENGTHS), strict=True):
        q, k, v = (part.transpose(0, 1).float() for part in parts)
        scores = q @ k.transpose(-1, -2) * query.shape[-1] ** -0.5
        future = torch.ones(scores.shape[-2:]).triu(1 + k.shape[1] - q.shape[1]).bool()
        outs.append((scores.masked_fill(future, float("-inf")).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outs).to(query.dtype)


def flash_forward(query: Any, key: Any, value: Any, starts: Any, ends: Any, *rest: Any, **_: Any) -> tuple[Any, ...]:
    last = len(query) == len(LENGTHS)
    assert ends.tolist() == [0, 7, 11, 15, 16]
    assert starts.tolist() == (list(range(5)) if last else ends.tolist())
    assert rest == (1 if last else 7, 7, 0.0, not last, False)
    return text_by_text(query, key, value), torch.zeros(1), torch.zeros(2), torch.zeros(1), None


def flash_backward(d_out: Any, query: Any, key: Any, value: Any, out: Any, *_: Any, **__: Any) -> tuple[Any, ...]:
    assert torch.equal(out, text_by_text(query, key, value))
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (query, key, value)]
        return torch.autograd.grad(text_by_text(*leaves), leaves, d_out)


@pytest.fixture
def here_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes of the states for which whole layers were computed. The kernels are their formulas."""
    taken: list[torch.Size] = []
    whole = kernels.whole_layer

    def compute(name: str, *arguments: Any, compiled: bool) -> Any:
        return FORMULAS[name][0](*arguments)

    def noted(layer: Any, kind: Any, states: torch.Tensor, *more: Any) -> torch.Tensor | None:
        out = whole(layer, kind, states, *more)
        taken.extend([] if out is None else [states.shape])
        return out

    for module in (adapter_copies, fused_layer, fused_lora, kernels, packed_attention):
        monkeypatch.setattr(module, "device_kind", lambda _: "cuda")
    for module in (fused_layer, fused_ops, lora_products):
        monkeypatch.setattr(module, "compute", compute)
    for module in (fused_layer, packed_attention):
        monkeypatch.setattr(module, "FLASH_FORWARD", flash_forward)
        monkeypatch.setattr(module, "FLASH_BACKWARD", flash_backward)
    monkeypatch.setattr(kernels, "whole_layer", noted)
    return taken


class Adapted:
    """A decoder of three layers with LoRA, packed and with the kernels of a GPU."""

    def __init__(
        self,
        kind: str = "llama",
        rate: float = 0.2,
        targets: list[str] = ALL,
        flash: bool = True,
        device: str = "cpu",
        **config: Any,
    ) -> None:
        torch.manual_seed(0)
        sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, head_dim=8)
        about = AutoConfig.for_model(
            kind, vocab_size=60, pad_token_id=0, num_key_value_heads=2, initializer_range=0.3, **sizes | config
        )
        self.network: Any = AutoModelForSequenceClassification.from_config(about).to(torch.bfloat16)
        lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=rate, target_modules=targets)
        self.model: Any = get_peft_model(self.network, lora).train()
        for name, parameter in self.model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.3)
        # A norm that only copies would hide which of them is meant.
        for name, parameter in self.network.named_parameters():
            if "norm" in name:
                nn.init.uniform_(parameter, -0.5, 1.5)
        self.model.to(device)
        self.device, self.tokens = device, TOKENS.to(device)
        self.packed = PackedForward(self.network, flash=flash).attach()
        self.kernels = FusedKernels(self.model, compiled=True, packed=True).attach()

    def states_and_gradients(self) -> list[torch.Tensor]:
        self.model.zero_grad()
        torch.manual_seed(7)
        with torch.autocast(self.device, dtype=torch.bfloat16):
            states = self.packed.states(self.tokens, LENGTHS)
        if states.requires_grad:
            weights = torch.linspace(-1, 1, states.numel(), device=self.device)
            (states.float() * weights.view(states.shape)).sum().backward()
        return [states.detach(), *(p.grad for p in self.model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("kind, rate, config", [
    ("llama", 0.0, {}), ("llama", 0.2, {}), ("qwen2", 0.2, {}), ("gemma", 0.2, {}), ("llama", 0.2, {"mlp_bias": True}),
])  # fmt: skip
def test_states_and_gradients_are_those_of_the_modules_to_the_last_bit(
    here_is_a_gpu: list[torch.Size], monkeypatch: pytest.MonkeyPatch, kind: str, rate: float, config: dict[str, Any]
) -> None:
    adapted = Adapted(kind, rate, **config)
    found = adapted.states_and_gradients()
    # The last layer computes less.
    assert here_is_a_gpu == [(1, 16, 32)] * 2
    monkeypatch.setattr(kernels, "whole_layer", lambda *_: None)
    expected = adapted.states_and_gradients()
    assert len(found) == len(expected) == 1 + 3 * 2 * len(ALL)
    assert all(bool(gradient.any()) for gradient in found)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    # Another seed of dropout gives others.
    monkeypatch.setattr(torch, "manual_seed", lambda _: None)
    again = adapted.states_and_gradients()
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True)) == (rate == 0)


def count_kept(run: Callable[[], Any]) -> int:
    """The bytes that a pass keeps for the way back, of tensors of its own."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = run()
    del held
    return sum(kept.values())


def test_no_more_is_kept_than_by_the_modules(here_is_a_gpu: list[torch.Size], monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = Adapted()

    def run() -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return adapted.packed.states(TOKENS, LENGTHS)

    found = count_kept(run)
    assert len(here_is_a_gpu) == 2
    monkeypatch.setattr(kernels, "whole_layer", lambda *_: None)
    assert found <= count_kept(run)


@pytest.mark.parametrize("change", [
    dict(targets=ALL[:3]), dict(flash=False), dict(kind="qwen3"), dict(attention_dropout=0.1),
])  # fmt: skip
def test_other_layers_are_left_to_their_modules(here_is_a_gpu: list[torch.Size], change: dict[str, Any]) -> None:
    assert len(Adapted(**change).states_and_gradients()) > 1
    assert here_is_a_gpu == []


def test_it_is_for_training_of_adapters_alone_in_16_bits(here_is_a_gpu: list[torch.Size]) -> None:
    adapted = Adapted()
    with torch.no_grad():
        adapted.states_and_gradients()
    layer = adapted.network.base_model.layers[0]
    layer.input_layernorm.weight.requires_grad_()
    hook = layer.self_attn.v_proj.register_forward_pre_hook(lambda *_: None)
    adapted.states_and_gradients()
    assert len(here_is_a_gpu) == 1
    layer.input_layernorm.weight.requires_grad_(False)
    adapted.states_and_gradients()
    # An engine waits for the call of a module.
    assert len(here_is_a_gpu) == 2
    hook.remove()
    hook = layer.register_forward_hook(lambda *_: None)
    adapted.states_and_gradients()
    assert len(here_is_a_gpu) == 3
    hook.remove()
    adapted.states_and_gradients()
    assert len(here_is_a_gpu) == 5
    adapted.kernels.detach()
    adapted.states_and_gradients()
    assert len(here_is_a_gpu) == 5


def test_recomputed_layers_are_left_to_their_modules(here_is_a_gpu: list[torch.Size]) -> None:
    adapted = Adapted()
    adapted.network.gradient_checkpointing_enable({"use_reentrant": False})
    assert len(adapted.states_and_gradients()) > 1
    assert here_is_a_gpu == []
