from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from llmcls.common.user_error import UserError
from llmcls.data.labels import LabelSpace
from llmcls.model.build import build_classifier
from llmcls.model.classifier import Classifier, count_parameters
from llmcls.model.pretrained import load_pretrained, load_tokenizer, quantized_layers
from llmcls.recipe.load import load_recipe
from tests.conftest import STORY_LLAMA, TOPICS, needs_real_data

CPU = torch.device("cpu")
LABELS = LabelSpace(list(TOPICS), list(TOPICS), "multi_label_classification")


def build(recipe_path: Path, overrides: list[str] | None = None) -> Classifier:
    torch.manual_seed(0)
    return build_classifier(load_recipe(recipe_path, overrides), LABELS, CPU)


def one_by_one(model: Classifier, texts: list[list[int]]) -> torch.Tensor:
    return torch.cat([model(torch.tensor([t]), torch.tensor([len(t)])) for t in texts])


def padded(texts: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, texts))
    return torch.tensor([t + [pad] * (width - len(t)) for t in texts]), torch.tensor([len(t) for t in texts])


@pytest.mark.parametrize("pad", [1, 0, 57])
def test_padding_changes_nothing_even_when_the_pad_token_ends_a_text(write_recipe, pad: int) -> None:
    model = build(write_recipe()).eval()
    texts = [[0, 5, 6, 7, 8, 9, 1], [0, 5, 57], [0], [57, 57, 1, 1]]
    with torch.no_grad():
        assert torch.allclose(model(*padded(texts, pad)), one_by_one(model, texts), atol=1e-5)


@needs_real_data
def test_story_llama_whose_pad_token_occurs_in_texts_is_pooled_by_length(write_recipe) -> None:
    model = build(write_recipe(model__model_name=str(STORY_LLAMA), train__packing=False)).eval()
    tokenizer = load_tokenizer(load_recipe(write_recipe()).model)
    assert tokenizer.padding_side == "right"
    texts = [[1, 80, 28, 0], [1, 0, 0, 40, 41, 0, 0], [1]]
    with torch.no_grad():
        logits = model(*padded(texts, 0))
        assert torch.allclose(logits, one_by_one(model, texts), atol=1e-5)
        hf = model.sequence_classifier(*padded(texts, 0)[:1], use_cache=False).logits
    assert not torch.allclose(hf, logits, atol=1e-3), "if transformers pools right by itself, ours can go"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("four_bit", [False, True])
def test_head_and_adapter_are_trained_in_full_precision_whatever_the_base(write_recipe, dtype, four_bit) -> None:
    model = build(write_recipe(model__torch_dtype=dtype, model__use_4bit=four_bit))
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert any("score" in n for n in trained)
    assert any("lora_A" in n for n in trained)
    assert all("score" in n or "lora_" in n for n in trained)
    assert (quantized_layers(model) > 0) == four_bit


def test_four_bit_uses_double_quantized_nf4_and_leaves_the_head_alone(write_recipe) -> None:
    model = build(write_recipe(model__use_4bit=True, model__torch_dtype="bfloat16"))
    states = [p.quant_state for p in model.parameters() if type(p).__name__ == "Params4bit"]
    assert len(states) == 2 * 7
    assert all(s.quant_type == "nf4" and s.nested for s in states)
    assert type(model.sequence_classifier.score.original_module) is torch.nn.Linear
    plain = build(write_recipe(model__use_4bit=False))
    assert count_parameters(model)[1] == count_parameters(plain)[1]


def test_gradient_checkpointing_follows_the_recipe_and_is_on_for_four_bit(write_recipe) -> None:
    def on(**changes: Any) -> bool:
        return build(write_recipe(**changes)).sequence_classifier.base_model.gradient_checkpointing

    assert not on()
    assert on(model__use_4bit=True)
    assert not on(model__use_4bit=True, train__gradient_checkpointing=False)
    assert on(model__use_4bit=False, train__gradient_checkpointing=True)


@pytest.mark.parametrize("packing", [None, False])
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_a_rows_logits_are_pooled_over_its_windows(write_recipe, pooling: str, packing: bool | None) -> None:
    from llmcls.data.batches import collate
    from llmcls.data.splits import Split

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


def test_only_as_many_layers_as_wanted_are_checkpointed(write_recipe) -> None:
    changes = {"train__gradient_checkpointing": True, "train__checkpoint_layers": 1}
    model = build(write_recipe(**changes))
    assert [layer.gradient_checkpointing for layer in model.sequence_classifier.base_model.layers] == [True, False]


def damage(model: Path, target: Path, change: Any) -> Path:
    shutil.copytree(model, target)
    weights = load_file(target / "model.safetensors")
    change(weights)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_a_base_without_one_layers_weights_is_refused_by_name(write_recipe, tiny_llama: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    folder = damage(tiny_llama, tmp_path / "stripped", lambda w: w.pop(name))
    with pytest.raises(UserError, match=re.escape(name)):
        build(write_recipe(model__model_name=str(folder)))


def test_a_base_with_a_weight_of_another_shape_is_refused_by_name(write_recipe, tiny_llama, tmp_path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    folder = damage(tiny_llama, tmp_path / "bent", lambda w: w.update({name: w[name][:-1].contiguous()}))
    with pytest.raises(UserError, match=re.escape(name)):
        build(write_recipe(model__model_name=str(folder)))


@pytest.mark.parametrize("four_bit", [False, True])
def test_embeddings_stored_as_the_tied_output_are_loaded(write_recipe, tiny_llama, tmp_path, four_bit) -> None:
    real = load_file(tiny_llama / "model.safetensors")["model.embed_tokens.weight"]

    def rename(weights: dict[str, torch.Tensor]) -> None:
        weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")

    folder = damage(tiny_llama, tmp_path / "tied", rename)
    spec = load_recipe(write_recipe(model__model_name=str(folder), model__use_4bit=four_bit)).model
    model, new = load_pretrained(spec, LABELS, CPU)
    assert new == ["score"]
    assert torch.equal(model.get_input_embeddings().weight, real)


@pytest.fixture
def tiny_bert(tiny_llama: Path, tmp_path: Path) -> Path:
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    folder = tmp_path / "tiny-bert"
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


def test_an_encoder_keeps_its_own_pooling_and_trains_its_new_pooler(write_recipe, tiny_bert: Path) -> None:
    path = write_recipe(model__model_name=str(tiny_bert), model__lora_target_modules=["query", "value"])
    model = build(path).eval()
    texts = [[0, 5, 6, 7, 8], [0, 5, 57]]
    with torch.no_grad():
        assert torch.allclose(model(*padded(texts, 1)), one_by_one(model, texts), atol=1e-5)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert any("pooler" in n for n in trained), (
        "a masked-language checkpoint has no pooler; a random one must be trained"
    )


def test_texts_longer_than_learned_positions_are_refused(write_recipe, tiny_bert: Path) -> None:
    path = write_recipe(model__model_name=str(tiny_bert), model__lora_target_modules=["query"], data__max_length=65)
    with pytest.raises(UserError, match=r"data\.max_length is 65; .* was made for 64 tokens"):
        build(path)


def test_a_missing_bitsandbytes_says_how_to_go_on(write_recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else real(name, *a)
    )
    with pytest.raises(UserError, match=r"pip install bitsandbytes.*model\.use_4bit=false"):
        build(write_recipe(model__use_4bit=True))


def test_full_fine_tuning_trains_float32_weights_of_every_layer(write_recipe) -> None:
    model = build(write_recipe(model__lora_r=0, model__torch_dtype="bfloat16"))
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
