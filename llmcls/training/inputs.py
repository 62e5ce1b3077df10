"""What all seeds of a training share: tokenizer, labels and splits."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import datasets
from accelerate import Accelerator, PartialState

from llmcls.data.labels import LabelSpace, label_space
from llmcls.data.splits import Split, tokenize_split, warn_about_split
from llmcls.data.subset import chosen_rows, part_of
from llmcls.data.tables import read_table
from llmcls.engine.agreement import first_process_first
from llmcls.model.pretrained import load_tokenizer
from llmcls.recipe.schema import SPLIT_KEYS, Recipe


@dataclass(frozen=True)
class Inputs:
    """What all seeds share.

    Attributes
    ----------
    tokenizer : `transformers` tokenizer
    labels : LabelSpace
    train_split : Split
    validation_split, test_split : Split, optional
    """

    tokenizer: Any
    labels: LabelSpace
    train_split: Split
    validation_split: Split | None
    test_split: Split | None


def load_inputs(recipe: Recipe, accelerator: Accelerator | PartialState) -> Inputs:
    """Read and tokenize the recipe's data. The first process of each machine does; the others read its cache.

    Raises
    ------
    UserError
        If a file, a column, a label or the tokenizer is not as it should be.
    """
    if not sys.stderr.isatty() or not accelerator.is_main_process:
        datasets.disable_progress_bars()
    tokenizer = load_tokenizer(recipe.model)
    files = recipe.data.files()
    splits: dict[str, Split] = {}
    with first_process_first(accelerator, accelerator.is_local_main_process):
        train_table = read_table(files["train"], "data.train_csv", recipe.data)
        labels = label_space(recipe, train_table)
        for name, path in files.items():
            table = train_table if name == "train" else read_table(path, f"data.{SPLIT_KEYS[name]}", recipe.data)
            splits[name] = tokenize_split(table, name, path, recipe, tokenizer, labels)
            if name == "train":
                rows = chosen_rows(splits[name].known_labels, labels, recipe.data)
                splits[name] = splits[name] if rows is None else part_of(splits[name], rows)
            warn_about_split(splits[name], labels, recipe.data.max_length)
    return Inputs(tokenizer, labels, splits["train"], splits.get("validation"), splits.get("test"))
