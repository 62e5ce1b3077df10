"""Tiny decoders and their tokenizers, for the demo, for tests, and for recipes without a pretrained model."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llmcls.common.files import replacing_folder
from llmcls.data.encoding import whole_texts
from llmcls.data.tables import read_table
from llmcls.recipe.schema import Recipe

log = logging.getLogger(__name__)


def train_tokenizer(texts: list[str], pieces: int = 1024, lowercase: bool = False) -> Any:
    """Train a byte-level BPE tokenizer that starts every text with a special token, as the tokenizer of Llama does.

    Parameters
    ----------
    texts : list of str
    pieces : int
        Size of the vocabulary.
    lowercase : bool
        Whether to ignore case. The first word of a text then has the same token as elsewhere.

    Returns
    -------
    `transformers` tokenizer
    """
    core = Tokenizer(models.BPE())
    if lowercase:
        core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=lowercase)
    core.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=pieces, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    core.post_processor = processors.TemplateProcessing(
        single=f"{special[0]} $A", special_tokens=[(special[0], core.token_to_id(special[0]))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=special[0], eos_token=special[1])


def write_tiny_llama(folder: Path, texts: list[str], seed: int, steps: int) -> float:
    """Train a tokenizer and a tiny Llama on texts, and save both.

    Parameters
    ----------
    folder : Path
        Where to save them.
    texts : list of str
    seed : int
        Seed of the weights and of the order of the samples.
    steps : int
        Optimizer steps.

    Returns
    -------
    float
        The next-token loss of the last step, in nats.
    """
    tokenizer = train_tokenizer(texts)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=96, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, use_cache=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    stream = torch.tensor([t for ids in tokenizer(texts)["input_ids"] for t in [*ids, tokenizer.eos_token_id]])
    sequence_length, batch = 128, 16
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(steps):
        starts = torch.randint(len(stream) - sequence_length, (batch,), generator=order)
        tokens = torch.stack([stream[s : s + sequence_length] for s in starts])
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    with replacing_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return loss.item()


@dataclass
class Size:
    """The size of an untrained decoder.

    Attributes
    ----------
    vocabulary : int
        Number of tokens of the tokenizer.
    hidden : int
        Width, a multiple of 32. An attention head has width 32, the MLP twice the width.
    layers : int
    lowercase : bool
        Whether the tokenizer ignores case.
    """

    vocabulary: int = 8192
    hidden: int = 128
    layers: int = 2
    lowercase: bool = True


def write_untrained_llama(recipe: Recipe, size: Size, seed: int) -> Path:
    """Train a tokenizer on the training texts of a recipe, draw random weights, and save both.

    Parameters
    ----------
    recipe : Recipe
        The model is saved to its ``model.model_name``.
    size : Size
    seed : int
        Seed of the weights.

    Returns
    -------
    Path
        The folder of the model.

    Raises
    ------
    UserError
        If the folder exists, or the training file cannot be read.
    """
    folder = Path(recipe.model.model_name)
    if folder.exists():
        raise recipe.error("model.model_name", f"is {folder}, which already exists; remove it or choose another name")
    data = recipe.data
    table = read_table(data.train_csv, "data.train_csv", data)
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
    log.info(
        "%s: %d parameters, vocabulary of %d tokens, %.0f tokens per text", folder, parameters, len(tokenizer), tokens
    )
    return folder
