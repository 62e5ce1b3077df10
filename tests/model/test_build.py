from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from llmcls.common.user_error import UserError
from llmcls.model.build import build_classifier, load_trained_classifier
from llmcls.model.four_bit import quantized_layers
from llmcls.recipe.load import load_recipe
from tests.model.helpers import CPU, LABELS, TEXTS, build, lengths_of, one_by_one, packed_row, padded_rows


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("four_bit", [False, True])
def test_head_and_adapter_are_trained_in_full_precision_for_every_dtype(write_recipe, dtype, four_bit) -> None:
    model = build(write_recipe(model__torch_dtype=dtype, model__use_4bit=four_bit))
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert any("score" in n for n in trained)
    assert any("lora_A" in n for n in trained)
    assert all("score" in n or "lora_" in n for n in trained)
    assert (quantized_layers(model) > 0) == four_bit


@pytest.mark.skipif(torch.cuda.is_available(), reason="the model would really compute on the GPU")
def test_a_4_bit_model_for_a_gpu_can_be_quantized_on_the_cpu(write_recipe) -> None:
    # Under FSDP no GPU may ever hold the whole model. Loading on the GPU would fail here, where there is none.
    recipe = load_recipe(write_recipe(), ["use_4bit=true", "torch_dtype=bfloat16"])
    model = build_classifier(recipe, LABELS, torch.device("cuda"), CPU)
    assert quantized_layers(model) > 0
    assert {p.device for p in model.parameters()} == {CPU}


def test_full_fine_tuning_trains_float32_weights_of_every_layer(write_recipe) -> None:
    model = build(write_recipe(model__lora_r=0, model__torch_dtype="bfloat16"))
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())


def test_gradient_checkpointing_follows_the_recipe_and_is_on_for_four_bit(write_recipe) -> None:
    def on(**changes: Any) -> bool:
        return build(write_recipe(**changes)).sequence_classifier.base_model.gradient_checkpointing

    assert not on()
    assert on(model__use_4bit=True)
    assert not on(model__use_4bit=True, train__gradient_checkpointing=False)
    assert on(model__use_4bit=False, train__gradient_checkpointing=True)


def test_only_as_many_layers_as_requested_are_checkpointed(write_recipe) -> None:
    changes = {"train__gradient_checkpointing": True, "train__checkpoint_layers": 1}
    model = build(write_recipe(**changes))
    assert [layer.gradient_checkpointing for layer in model.sequence_classifier.base_model.layers] == [True, False]


def test_an_encoder_keeps_its_own_pooling_and_trains_its_new_pooler(write_recipe, tiny_bert: Path) -> None:
    path = write_recipe(model__model_name=str(tiny_bert), model__lora_target_modules=["query", "value"])
    model = build(path).eval()
    assert not model.is_decoder
    texts = [[0, 5, 6, 7, 8], [0, 5, 57]]
    with torch.no_grad():
        assert torch.allclose(model(padded_rows(texts, 1), lengths_of(texts)), one_by_one(model, texts), atol=1e-5)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert any("pooler" in n for n in trained), "the random pooler of a masked-language checkpoint must be trained"


@pytest.mark.parametrize("override", ["pooling=mean", "bidirectional=true"])
def test_an_encoder_has_no_other_pooling_or_direction(write_recipe, tiny_bert: Path, override: str) -> None:
    path = write_recipe(model__model_name=str(tiny_bert), model__lora_target_modules=["query"])
    with pytest.raises(UserError, match=f"model.{override.partition('=')[0]} is for decoders"):
        build(path, override)


def test_texts_longer_than_learned_positions_are_refused(write_recipe, tiny_bert: Path) -> None:
    path = write_recipe(model__model_name=str(tiny_bert), model__lora_target_modules=["query"], data__max_length=65)
    with pytest.raises(UserError, match=r"data\.max_length is 65; .* was made for 64 tokens"):
        build(path)


def test_bidirectional_attention_needs_packing(write_recipe) -> None:
    with pytest.raises(UserError, match=r"model\.bidirectional needs packed micro-batches"):
        build(write_recipe(model__bidirectional=True, train__packing=False))


@pytest.mark.parametrize(
    "overrides", [[], ["lora_r=0"], ["lora_r=0", "pooling=attention"]], ids=["adapter", "whole", "attention"]
)
def test_a_saved_model_gives_the_logits_it_gave_before(write_recipe, tmp_path: Path, overrides: list[str]) -> None:
    path = write_recipe()
    model = build(path, *overrides).eval()
    row, lengths = packed_row(TEXTS), lengths_of(TEXTS)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "attend" in name:
                parameter.normal_(0, 0.05)
        expected = model(row, lengths)
        model.model.save_pretrained(tmp_path / "model")
        AutoTokenizer.from_pretrained(load_recipe(path).model.model_name).save_pretrained(tmp_path / "model")
        loaded = load_trained_classifier(load_recipe(path, overrides), LABELS, tmp_path / "model", CPU).eval()
        assert torch.allclose(loaded(row, lengths), expected, atol=1e-5)
    assert not any("lora" in name for name, _ in loaded.named_parameters()), "a float32 adapter is merged"
