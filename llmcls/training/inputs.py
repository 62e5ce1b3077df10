"""What all seeds of a training share: tokenizer, labels and splits."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, replace
from typing import Any

import datasets
from accelerate import Accelerator, PartialState

from llmcls.data.findings import warn_about_leaks, warn_about_rows
from llmcls.data.holdout import held_out_rows, kept_rows
from llmcls.data.labels import LabelSpace, label_space
from llmcls.data.marks import MANY_LABELS
from llmcls.data.splits import Split, tokenize_split, warn_about_split
from llmcls.data.subset import chosen_rows, part_of
from llmcls.data.tables import read_table
from llmcls.engine.agreement import first_process_first
from llmcls.model.label_weights import check_label_weights
from llmcls.model.pretrained import load_tokenizer
from llmcls.recipe.checks import check_for_labels
from llmcls.recipe.schema import SPLIT_KEYS, Recipe

log = logging.getLogger(__name__)


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
    data = recipe.data
    splits: dict[str, Split] = {}
    with first_process_first(accelerator, accelerator.is_local_main_process):
        table = read_table(data.train_csv, "data.train_csv", data)
        labels = label_space(recipe, table)
        check_for_labels(recipe, len(labels.names), labels.many)
        if labels.many:
            log.info(
                "%s labels: they are kept sparse, and of each text the %d most probable ones (more than %d labels)",
                f"{len(labels.names):,}", recipe.train.top_labels, MANY_LABELS,
            )  # fmt: skip
        check_label_weights(recipe, labels)
        whole = tokenize_split(table, "train", data.train_csv, recipe, tokenizer, labels)
        held = held_out_rows(whole.known_labels, whole.known_digests, labels, data)
        if held is not None:
            splits["validation"] = replace(part_of(whole, held), name="validation")
            whole = part_of(whole, kept_rows(held, len(whole)))
        rows = chosen_rows(whole.known_labels, labels, data)
        splits["train"] = whole if rows is None else part_of(whole, rows)
        for name, path in data.files().items():
            if name not in splits:
                table = read_table(path, f"data.{SPLIT_KEYS[name]}", data)
                splits[name] = tokenize_split(table, name, path, recipe, tokenizer, labels)
            warn_about_split(splits[name], labels, data.max_length)
            warn_about_rows(splits[name], labels)
            if name != "train":
                warn_about_leaks(splits[name], splits["train"])
    return Inputs(tokenizer, labels, splits["train"], splits.get("validation"), splits.get("test"))
