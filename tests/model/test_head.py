from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, RobertaConfig, RobertaForSequenceClassification

from llmcls.model.head import head_linear, states_read_by
from tests.helpers import TOPICS
from tests.model.helpers import TEXTS, build, lengths_of, packed_row

SMALL = {
    "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "num_labels": 3,
}  # fmt: skip


@pytest.mark.parametrize("overrides", [[], ["pooling=attention"], ["lora_r=0"]], ids=["adapter", "attention", "whole"])
def test_what_the_head_reads_times_its_weights_are_the_logits(write_recipe, overrides: list[str]) -> None:
    model = build(write_recipe(), *overrides).eval()
    linear = head_linear(model, len(TOPICS))
    assert linear is not None
    with states_read_by(linear) as read, torch.no_grad():
        logits = model(packed_row(TEXTS), lengths_of(TEXTS))
        assert torch.equal(read[0] @ linear.weight.T, logits)
    model(packed_row(TEXTS[:1]), lengths_of(TEXTS[:1]))
    assert len(read[0]) == len(TEXTS), "nothing is kept any more"


@pytest.mark.parametrize(
    "config, architecture, name",
    [
        (BertConfig(**SMALL), BertForSequenceClassification, "classifier"),
        (RobertaConfig(**SMALL), RobertaForSequenceClassification, "classifier.out_proj"),
    ],
    ids=["bert", "roberta"],
)
def test_of_an_encoder_it_is_the_last_layer_of_its_classification_head(config, architecture, name: str) -> None:
    model = architecture(config)
    assert head_linear(model, 3) is model.get_submodule(name)
    assert head_linear(model, 4) is None


def test_a_frozen_head_is_found_only_where_no_layer_trains() -> None:
    model = BertForSequenceClassification(BertConfig(**SMALL)).requires_grad_(False)
    assert head_linear(model, 3) is None
    assert head_linear(model, 3, trained=False) is model.classifier
