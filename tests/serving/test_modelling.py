from __future__ import annotations

import copy
from types import ModuleType

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from llmcls.model.classifier import Classifier
from llmcls.model.packed_forward import PackedForward
from llmcls.model.pooling import add_attention_query
from llmcls.serving.modelling import CLASS, modelling_source

LENGTHS = [5, 2, 9]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    ("pooling", "bidirectional"), [("mean", False), ("mean", True), ("attention", False), ("last", True)]
)
def test_the_file_gives_the_logits_of_the_classifier(pooling: str, bidirectional: bool, side: str) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_labels=3, pad_token_id=0, pooling=pooling, bidirectional=bidirectional,
    )  # fmt: skip
    network = LlamaForSequenceClassification(config).eval()
    if pooling == "attention":
        add_attention_query(network)
        torch.nn.init.normal_(network.score.attend.weight)
    module = ModuleType("modeling_classifier")
    exec(modelling_source("LlamaForSequenceClassification", pooling, bidirectional), module.__dict__)
    exported = getattr(module, CLASS)(copy.deepcopy(config)).eval()
    exported.load_state_dict(network.state_dict())

    texts = [torch.randint(1, 60, (n,)) for n in LENGTHS]
    padded, real = torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.long)
    for row, text in enumerate(texts):
        where = slice(0, len(text)) if side == "right" else slice(9 - len(text), 9)
        padded[row, where], real[row, where] = text, 1
    packed = PackedForward(network, pooling, bidirectional).attach()
    with torch.no_grad():
        expected = Classifier(network, packed, pooling)(torch.cat(texts), LENGTHS)
        found = exported(input_ids=padded, attention_mask=real).logits
    assert torch.allclose(found, expected, atol=1e-5)


def test_the_file_names_what_it_does() -> None:
    source = modelling_source("LlamaForSequenceClassification", "mean", True)
    assert source.startswith('"""A sequence classifier with mean pooling, every token sees the whole text.')
