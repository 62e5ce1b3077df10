"""The values that are proposed for a table and a machine: length, split, model, batches."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from llmcls.common.user_error import UserError
from llmcls.data.encoding import encode_texts, whole_texts
from llmcls.data.tables import require_columns
from llmcls.engine.hardware import Hardware
from llmcls.intake.columns import SAMPLE, LabelForm, id_column, label_form, look_at
from llmcls.model.pretrained import load_tokenizer
from llmcls.recipe.schema import DataSection, ModelSection

# Open models by the memory of the GPU from which they are comfortable, in GiB; 0 is a CPU.
MODELS = (
    (0, "HuggingFaceTB/SmolLM2-135M"), (8, "HuggingFaceTB/SmolLM2-360M"), (12, "Qwen/Qwen3-0.6B-Base"),
    (24, "Qwen/Qwen3-1.7B-Base"), (70, "Qwen/Qwen3-4B-Base"),
)  # fmt: skip
# Where the quickstart puts the smallest one.
LOCAL_MODEL = "demo/smollm2-135m"
# Most tokens of a text that are proposed, without and with a GPU.
LONGEST = (256, 1024)
# A token of a subword tokenizer has about so many characters.
CHARACTERS_PER_TOKEN = 3.5


@dataclass(frozen=True)
class Choices:
    """What the user said; None where the table tells.

    Attributes
    ----------
    text, labels : list of str
    id_column, problem_type, label_separator, model, validation, test : str, optional
    """

    text: list[str]
    labels: list[str]
    id_column: str | None = None
    problem_type: str | None = None
    label_separator: str | None = None
    model: str | None = None
    validation: str | None = None
    test: str | None = None


@dataclass(frozen=True)
class Proposal:
    """What a recipe is written from.

    Attributes
    ----------
    data : DataSection
    form : LabelForm
    model_name : str
    rows : int
    cut : float
        The share of the texts that is longer than ``data.max_length``.
    measured : bool
        Whether lengths are counted with the tokenizer of the model, or estimated.
    gpu_gib : float
        Memory of the smallest GPU; 0 without one.
    """

    data: DataSection
    form: LabelForm
    model_name: str
    rows: int
    cut: float
    measured: bool
    gpu_gib: float


def propose(table: datasets.Dataset, path: str, data: DataSection, choices: Choices, hardware: Hardware) -> Proposal:
    """Values for a table.

    Parameters
    ----------
    table : datasets.Dataset
        The training file.
    path : str
    data : DataSection
        Name, file, separator and encoding.
    choices : Choices
        With text and label columns.
    hardware : Hardware

    Raises
    ------
    UserError
        If a column is missing, or the labels do not fit the problem type.
    """
    require_columns(table, choices.text, path, "--text")
    require_columns(table, choices.labels, path, "--labels")
    form = label_form(table, choices.labels)
    if choices.label_separator:
        form = LabelForm("multi_label_classification", choices.label_separator, form.names, "as you said")
    if choices.problem_type and choices.problem_type != form.problem_type:
        separator = form.separator if choices.problem_type == "multi_label_classification" else None
        form = LabelForm(choices.problem_type, separator, form.names, "as you said")
    gib = min(hardware.gpus, default=0.0)
    model = choices.model or choose_model(gib)
    data.text_fields, data.label_columns, data.label_separator = choices.text, choices.labels, form.separator
    data.id_column = choices.id_column or id_column(table, look_at(table), [*choices.text, *choices.labels])
    data.val_csv, data.test_csv = choices.validation, choices.test
    if choices.validation is None:
        data.validation_split = 0.2 if len(table) < 1000 else 0.1
    rows = np.sort(np.random.default_rng(0).permutation(len(table))[:SAMPLE])
    lengths, measured = token_lengths(whole_texts(table.select(rows), data), model)
    data.max_length = fitting_length(lengths, LONGEST[gib > 0])
    return Proposal(data, form, model, len(table), float((lengths > data.max_length).mean()), measured, gib)


def choose_model(gib: float) -> str:
    """A model for the memory of a GPU; the one of the quickstart, if it is there, without one."""
    if gib == 0 and os.path.isdir(LOCAL_MODEL):
        return LOCAL_MODEL
    return [name for least, name in MODELS if gib >= least][-1]


def token_lengths(texts: list[str], model: str) -> tuple[np.ndarray, bool]:
    """Tokens of each text, and whether they were counted. A model that is not a folder is not downloaded for that."""
    if os.path.isdir(model):
        try:
            tokenizer: Any = load_tokenizer(ModelSection(model))
            return np.array([len(ids) for ids in encode_texts(texts, tokenizer, 1_000_000)]), True
        except UserError:
            pass
    return np.array([len(text) / CHARACTERS_PER_TOKEN + 1 for text in texts]), False


def fitting_length(lengths: np.ndarray, longest: int) -> int:
    """A multiple of 32 that nearly all texts fit into, at most ``longest``.

    Examples
    --------
    >>> fitting_length(np.array([10, 20, 70]), 256), fitting_length(np.array([2000]), 256)
    (96, 256)
    """
    return int(min(longest, 32 * max(1, np.ceil(np.quantile(lengths, 0.99) / 32))))


def dataset_name(path: Path) -> str:
    """A name for the results, from that of the file; ``train.csv`` is named after its folder.

    Examples
    --------
    >>> dataset_name(Path("My reviews (2).csv")), dataset_name(Path("news/train.csv"))
    ('My_reviews_2', 'news')
    """
    stem = path.resolve().parent.name if path.stem.lower() in ("train", "training", "data") else path.stem
    return re.sub(r"[^\w-]+", "_", stem).strip("_")[:60] or "data"


def sibling(path: Path, names: tuple[str, ...]) -> str | None:
    """A file beside ``train.csv`` that is called like another split."""
    if not path.stem.lower().startswith("train"):
        return None
    found = [path.with_name(f"{name}{path.stem[5:]}{path.suffix}") for name in names]
    return next((str(other) for other in found if other.is_file()), None)
