from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmcls.common.user_error import UserError
from llmcls.datasets.products import make_corpus
from llmcls.model.tiny import Size, train_tokenizer, write_tiny_llama, write_untrained_llama
from llmcls.recipe.load import load_recipe
from tests.helpers import read_rows

TEXTS = ["A sturdy kettle, loved by the whole family", "Zürich ☃", ""]


@pytest.mark.parametrize("lowercase", [False, True])
def test_a_tokenizer_starts_every_text_with_a_special_token_and_loses_no_letter(lowercase: bool) -> None:
    tokenizer = train_tokenizer(make_corpus(50, 0), pieces=600, lowercase=lowercase)
    assert len(tokenizer) == 600
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        decoded = tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert decoded == (text.lower() if lowercase else text)
    assert tokenizer.pad_token is None


def test_a_tiny_llama_is_a_function_of_its_seed_and_learns(tmp_path: Path) -> None:
    corpus = make_corpus(60, seed=0)
    losses = [write_tiny_llama(tmp_path / name, corpus, seed, 4) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    assert losses[0] == losses[1] != losses[2]
    assert write_tiny_llama(tmp_path / "d", corpus, 0, 30) < losses[0]
    model, tokenizer = (kind.from_pretrained(tmp_path / "a") for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert model.config.vocab_size == len(tokenizer)


def test_an_untrained_llama_has_the_requested_size_and_the_words_of_the_texts(write_recipe, products, tmp_path) -> None:
    folder = tmp_path / "own" / "model"
    recipe = load_recipe(write_recipe(model__model_name=str(folder)))
    assert write_untrained_llama(recipe, Size(vocabulary=700, hidden=64, layers=3), seed=0) == folder
    model, tokenizer = (kind.from_pretrained(folder) for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert (model.config.hidden_size, model.config.num_hidden_layers, model.config.vocab_size) == (64, 3, 700)
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()
    # Lower-case, and fewer tokens than letters, because it was trained on these texts.
    text = read_rows(products / "train.csv")[0]["description"]
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text.lower()
    assert len(ids) < len(text) / 3


def test_an_existing_folder_is_not_replaced(write_recipe, tiny_llama: Path) -> None:
    with pytest.raises(UserError, match=r"model\.model_name is .*tiny-llama, which already exists"):
        write_untrained_llama(load_recipe(write_recipe()), Size(), seed=0)
