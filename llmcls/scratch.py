"""A model from nothing: ``python -m llmcls.scratch RECIPE`` writes a small decoder and a tokenizer of its texts.

For a machine without a GPU and texts of one kind: a tokenizer trained on the training texts makes them short, and a
Llama of two layers with random weights, trained whole (``lora_r: 0``), learns a classifier in minutes. The folder is
the recipe's ``model.model_name``.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from llmcls import UserMistake, run_command
from llmcls.encoding import whole_texts
from llmcls.files import replacing_folder
from llmcls.quickstart import train_tokenizer
from llmcls.recipe import Recipe, load_recipe
from llmcls.tables import read_table
from llmcls.tracking import configure_logging

log = logging.getLogger("llmcls.scratch")


@dataclass
class Size:
    """vocabulary: pieces of the tokenizer. hidden: width; a head is 32 wide, the MLP twice the width."""

    vocabulary: int = 8192
    hidden: int = 128
    layers: int = 2
    lowercase: bool = True


def main(argv: list[str] | None = None) -> None:
    """Write the model."""
    parser = argparse.ArgumentParser(prog="llmcls.scratch", description="Write a small random decoder for a recipe.")
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--vocabulary", type=int, default=Size.vocabulary, help="pieces of the tokenizer")
    parser.add_argument("--hidden", type=int, default=Size.hidden, help="width, a multiple of 32")
    parser.add_argument("--layers", type=int, default=Size.layers)
    parser.add_argument("--cased", action="store_true", help="keep capital letters apart")
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_intermixed_args(argv)
    configure_logging(main_process=True)
    if a.hidden < 32 or a.hidden % 32 or a.layers < 1 or a.vocabulary < 512:
        raise UserMistake("--hidden must be a multiple of 32, --layers at least 1 and --vocabulary at least 512")
    recipe = load_recipe(a.recipe, a.overrides)
    write_model(recipe, Size(a.vocabulary, a.hidden, a.layers, not a.cased), a.seed)


def write_model(recipe: Recipe, size: Size, seed: int) -> Path:
    """Train the tokenizer, draw the weights, and write both to ``model.model_name``.

    Raises
    ------
    UserMistake: there is something of that name already.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = Path(recipe.model.model_name)
    if folder.exists():
        raise recipe.mistake("model.model_name", f"is {folder}, which is there already; remove it or name another")
    data = recipe.data
    table = read_table(data.train_csv, "data.train_csv")
    texts = whole_texts(table, data)
    tokenizer = train_tokenizer(texts, size.vocabulary, size.lowercase)
    torch.manual_seed(seed)
    heads = size.hidden // 32
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=size.hidden, intermediate_size=2 * size.hidden,
        num_hidden_layers=size.layers, num_attention_heads=heads, num_key_value_heads=heads,
        max_position_embeddings=max(512, data.max_length), tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, use_cache=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with replacing_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    tokens = sum(len(ids) for ids in tokenizer(texts)["input_ids"]) / len(texts)
    parameters = sum(p.numel() for p in model.parameters())
    log.info("%s: %d parameters, %d pieces, %.0f tokens a text", folder, parameters, len(tokenizer), tokens)
    return folder


if __name__ == "__main__":
    run_command(main)
