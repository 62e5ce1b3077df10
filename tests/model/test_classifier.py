from __future__ import annotations

import numpy as np
import pytest
import torch

from llmcls.data.batches import collate
from llmcls.data.splits import Split
from llmcls.model.classifier import count_parameters
from llmcls.model.pretrained import load_tokenizer
from llmcls.recipe.load import load_recipe
from tests.helpers import STORY_LLAMA, needs_real_data
from tests.model.helpers import TEXTS, build, lengths_of, one_by_one, packed_row, padded_rows


@pytest.mark.parametrize("pad", [1, 0, 57])
def test_padding_changes_nothing_even_if_the_pad_token_ends_a_text(write_recipe, pad: int) -> None:
    model = build(write_recipe()).eval()
    texts = [[0, 5, 6, 7, 8, 9, 1], [0, 5, 57], [0], [57, 57, 1, 1]]
    with torch.no_grad():
        assert torch.allclose(model(padded_rows(texts, pad), lengths_of(texts)), one_by_one(model, texts), atol=1e-5)


@needs_real_data
def test_story_llama_whose_pad_token_occurs_in_texts_is_pooled_by_length(write_recipe) -> None:
    model = build(write_recipe(model__model_name=str(STORY_LLAMA), train__packing=False)).eval()
    tokenizer = load_tokenizer(load_recipe(write_recipe()).model)
    assert tokenizer.padding_side == "right"
    texts = [[1, 80, 28, 0], [1, 0, 0, 40, 41, 0, 0], [1]]
    with torch.no_grad():
        logits = model(padded_rows(texts, 0), lengths_of(texts))
        assert torch.allclose(logits, one_by_one(model, texts), atol=1e-5)
        hf = model.sequence_classifier(padded_rows(texts, 0), use_cache=False).logits
    assert not torch.allclose(hf, logits, atol=1e-3), "if transformers pools right by itself, our pooling can go"


@pytest.mark.parametrize("packing", [None, False])
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_the_logits_of_a_row_are_pooled_over_its_windows(write_recipe, pooling: str, packing: bool | None) -> None:
    changes = {"data__truncation": "windows", "data__window_pooling": pooling, "data__max_length": 16}
    model = build(write_recipe(data__window_overlap=0, train__packing=packing, **changes)).eval()
    rows = [np.arange(3, 40, dtype=np.int32), np.arange(50, 55, dtype=np.int32), np.arange(60, 76, dtype=np.int32)]
    split = Split("x", "x", rows, np.array([37, 5, 16]), None, None, window=16)
    batch = collate(split, np.arange(3), 0, packed=bool(model.packs))
    assert batch.windows == [3, 1, 1]
    with torch.no_grad():
        found = model(batch.input_ids, batch.lengths, batch.windows)
        for row, logits in zip(rows, found, strict=True):
            parts = [torch.from_numpy(row[i : i + 16].astype(np.int64)) for i in range(0, len(row), 16)]
            alone = torch.cat([model(part[None], [len(part)]) for part in parts])
            expected = alone.mean(0) if pooling == "mean" else alone.amax(0)
            assert torch.allclose(logits, expected, atol=1e-5)


@pytest.mark.parametrize("overrides", [[], ["pooling=attention"], ["lora_variant=dora"]])
def test_merging_the_adapter_keeps_the_logits_and_removes_it(write_recipe, overrides: list[str]) -> None:
    model = build(write_recipe(), *overrides).eval()
    row, lengths = packed_row(TEXTS), lengths_of(TEXTS)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)
        before = model(row, lengths)
        model.merge_adapter()
        assert torch.allclose(model(row, lengths), before, atol=1e-5)
    assert not any("lora" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("overrides", [["torch_dtype=bfloat16"], ["use_4bit=true"]])
def test_an_adapter_that_would_be_rounded_is_not_merged(write_recipe, overrides: list[str]) -> None:
    model = build(write_recipe(), *overrides)
    model.merge_adapter()
    assert any("lora" in name for name, _ in model.named_parameters())


def test_a_4_bit_weight_counts_as_the_weights_it_stores(write_recipe) -> None:
    path = write_recipe()
    trainable, total = count_parameters(build(path))
    # Rank 4 on q_proj (96 to 96) and v_proj (96 to 32) of two layers, and a head of ten labels.
    assert trainable == 2 * 4 * (96 + 96 + 96 + 32) + 96 * 10
    assert count_parameters(build(path, "use_4bit=true")) == (trainable, total)
