from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmcls.common.user_error import UserError
from llmcls.model.classifier import count_parameters
from llmcls.model.pretrained import load_config, load_pretrained, load_tokenizer
from llmcls.model.tiny import train_tokenizer
from llmcls.recipe.load import load_recipe
from tests.helpers import refusal
from tests.model.helpers import CPU, LABELS, build, damaged


def test_four_bit_uses_double_quantized_nf4_and_leaves_the_head_alone(write_recipe) -> None:
    model = build(write_recipe(model__use_4bit=True, model__torch_dtype="bfloat16"))
    states = [p.quant_state for p in model.parameters() if type(p).__name__ == "Params4bit"]
    assert len(states) == 2 * 7
    assert all(s.quant_type == "nf4" and s.nested for s in states)
    assert type(model.sequence_classifier.score.original_module) is torch.nn.Linear
    plain = build(write_recipe(model__use_4bit=False))
    assert count_parameters(model)[1] == count_parameters(plain)[1]


def test_a_model_without_the_weights_of_one_layer_is_refused_by_name(write_recipe, tiny_llama, tmp_path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    folder = damaged(tiny_llama, tmp_path / "stripped", lambda w: w.pop(name))
    with pytest.raises(UserError, match=re.escape(name)):
        build(write_recipe(model__model_name=str(folder)))


def test_a_model_with_a_weight_of_another_shape_is_refused_by_name(write_recipe, tiny_llama, tmp_path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    folder = damaged(tiny_llama, tmp_path / "bent", lambda w: w.update({name: w[name][:-1].contiguous()}))
    with pytest.raises(UserError, match=re.escape(name)):
        build(write_recipe(model__model_name=str(folder)))


def test_weights_that_can_hold_code_are_read_only_if_the_recipe_trusts_them(write_recipe, tiny_llama, tmp_path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_llama, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"pickled' has no weights as safetensors, and other formats can hold code"):
        build(write_recipe(model__model_name=str(folder)))
    build(write_recipe(model__model_name=str(folder), model__trust_remote_code=True))


def test_a_damaged_weights_file_is_one_sentence(write_recipe, tiny_llama: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_llama, folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "damaged" in refusal(capsys, "train", write_recipe(model__model_name=str(folder)))


@pytest.mark.parametrize("four_bit", [False, True])
def test_embeddings_stored_as_the_tied_output_are_loaded(write_recipe, tiny_llama, tmp_path, four_bit) -> None:
    real = load_file(tiny_llama / "model.safetensors")["model.embed_tokens.weight"]

    def rename(weights: dict[str, torch.Tensor]) -> None:
        weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")

    folder = damaged(tiny_llama, tmp_path / "tied", rename)
    spec = load_recipe(write_recipe(model__model_name=str(folder), model__use_4bit=four_bit)).model
    model, new = load_pretrained(spec, LABELS, CPU)
    assert new == ["score"]
    assert torch.equal(model.get_input_embeddings().weight, real)


def test_a_missing_bitsandbytes_says_what_to_do(write_recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else real(name, *a)
    )
    with pytest.raises(UserError, match=r"pip install.*model\.use_4bit=false"):
        build(write_recipe(model__use_4bit=True))


def test_a_model_that_cannot_be_found_is_one_sentence(write_recipe, capsys) -> None:
    found = refusal(capsys, "check", write_recipe(model__model_name="nobody/nothing-1B"))
    assert "model.model_name: 'nobody/nothing-1B' is not a local folder" in found
    assert len(found) < 300


def test_a_folder_without_a_model_is_one_sentence(write_recipe, tmp_path: Path) -> None:
    spec = load_recipe(write_recipe(model__model_name=str(tmp_path))).model
    with pytest.raises(UserError, match=r"model\.model_name: .* is a folder without a readable model"):
        load_config(spec, LABELS)


def test_a_folder_with_the_words_of_a_refusal_in_its_name_needs_no_permission(write_recipe, tmp_path: Path) -> None:
    (tmp_path / "gated-403").mkdir()
    spec = load_recipe(write_recipe(model__model_name=str(tmp_path / "gated-403"))).model
    with pytest.raises(UserError, match="gated-403' is a folder without a readable model"):
        load_config(spec, LABELS)


def test_the_configuration_has_a_head_for_the_labels(write_recipe) -> None:
    config = load_config(load_recipe(write_recipe()).model, LABELS)
    assert config.num_labels == len(LABELS.names)
    assert config.id2label[0] == LABELS.names[0]
    assert config.label2id == {name: i for i, name in enumerate(LABELS.names)}
    assert config.problem_type == "multi_label_classification"
    # The tiny Llama has no pad token.
    assert config.pad_token_id is not None


def test_a_tokenizer_pads_on_the_right_with_a_token_and_does_not_cut(write_recipe) -> None:
    tokenizer = load_tokenizer(load_recipe(write_recipe()).model)
    assert tokenizer.pad_token == tokenizer.eos_token
    assert tokenizer.padding_side == tokenizer.truncation_side == "right"
    assert len(tokenizer("word " * 3000)["input_ids"]) >= 3000


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(write_recipe, tiny_llama: Path, tmp_path) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(tiny_llama, folder)
    words = [f"{a}{b}{c}" for a in "abcdefghijklm" for b in "nopqrstuvwxyz" for c in "abcdefghijklm"]
    train_tokenizer(words, pieces=1500).save_pretrained(folder)
    with pytest.raises(UserError, match=r"tokenizer of .* has \d+ tokens, .*1024"):
        build(write_recipe(model__model_name=str(folder)))
