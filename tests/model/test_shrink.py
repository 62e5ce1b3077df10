from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, LlamaConfig

from llmcls.model.shrink import HEADS, LAYERS, shrink


@pytest.mark.parametrize("kind", ["bert", "gpt2", "qwen3", "gemma2", "modernbert"])
def test_architectures_shrink_and_run(kind: str) -> None:
    config = shrink(AutoConfig.for_model(kind, vocab_size=1000, pad_token_id=0))
    model = AutoModelForSequenceClassification.from_config(config)
    assert sum(p.numel() for p in model.parameters()) < 2e6
    assert model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape == (1, 2)


def test_grouped_heads_stay_grouped_and_the_original_is_not_changed() -> None:
    config = LlamaConfig(num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, num_labels=7)
    small = shrink(config)
    assert (small.num_attention_heads, small.num_key_value_heads) == (HEADS, HEADS // 4)
    assert small.num_hidden_layers == LAYERS
    assert small.num_labels == 7
    assert config.num_hidden_layers == 16


def test_layer_types_are_cut_to_the_number_of_layers() -> None:
    config = shrink(AutoConfig.for_model("gemma2", vocab_size=1000))
    assert len(config.layer_types) == LAYERS


@pytest.mark.parametrize("kind", ["deepseek_v3", "mistral4", "minicpm3"])
def test_attention_from_a_latent_state_shrinks_and_runs(kind: str) -> None:
    config = shrink(AutoConfig.for_model(kind, vocab_size=1000, pad_token_id=0))
    model = AutoModelForSequenceClassification.from_config(config).eval()
    assert model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape == (1, 2)
