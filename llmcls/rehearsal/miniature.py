"""Reduce a recipe to a miniature for a rehearsal: a small model of the same architecture, and a sample of the data.

The code that runs, the module names, the label columns and the file formats are those of the real recipe; only the
sizes differ. A model or data file that is not available is replaced, and `Miniature.stand_ins` lists the replacements.
"""

from __future__ import annotations

import csv
import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, LlamaConfig

from llmcls.common.files import write_text
from llmcls.common.user_error import UserError
from llmcls.data.label_cells import soft_cell
from llmcls.data.labels import LabelSpace, label_space, names_in
from llmcls.data.tables import cell_text, read_table
from llmcls.datasets.products import make_corpus
from llmcls.model.pretrained import load_config, load_tokenizer
from llmcls.model.shrink import HEAD_WIDTH, HEADS, LAYERS, shrink
from llmcls.model.tiny import train_tokenizer
from llmcls.recipe.load import recipe_to_yaml
from llmcls.recipe.metric_names import RANKED_METRICS
from llmcls.recipe.schema import SPLIT_KEYS, Recipe

# Chosen so that no number of processes and no batch size divides them.
ROWS = {"train": 97, "validation": 37, "test": 53}
LLAMA_MODULES = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
BERT_MODULES = {"query", "key", "value", "dense"}


@dataclass
class Miniature:
    """A recipe in miniature.

    Attributes
    ----------
    recipe : Recipe
        The recipe of the rehearsal.
    path : Path
        Its file.
    config : `transformers` configuration, optional
        Of the real model; None if it cannot be loaded.
    stand_ins : list of str
        What was replaced because it is not available, and by what.
    """

    recipe: Recipe
    path: Path
    config: Any = None
    stand_ins: list[str] = field(default_factory=list)


def make_miniature(recipe: Recipe, folder: Path, steps: int) -> Miniature:
    """Write a small model, a sample of the data, and a recipe that uses both.

    Parameters
    ----------
    recipe : Recipe
        The real recipe.
    folder : Path
        Where to write.
    steps : int
        Optimizer steps of the rehearsal.

    Returns
    -------
    Miniature

    Raises
    ------
    UserError
        If the architecture cannot be shrunk, or the data does not match the recipe.
    """
    mini = Miniature(recipe, folder / "recipe.yaml")
    data, labels = _sample_data(recipe, folder, mini.stand_ins)
    model_folder = folder / "model"
    targets = _write_model(recipe, labels, model_folder, mini)
    train, real_data = recipe.train, recipe.data
    metric = train.metric_for_best_model
    if metric in RANKED_METRICS and not labels.many:
        mini.stand_ins.append(f"f1_micro replaces {metric}, which needs thousands of labels")
        metric = None
    weights = train.pos_weight
    if isinstance(weights, dict) and not set(weights) <= set(labels.names):
        # Generated rows have other classes.
        weights = "balanced"
    # A prompt needs the full length.
    length = real_data.max_length if real_data.prompt else min(real_data.max_length, 96)
    mini.recipe = replace(
        recipe,
        data=replace(
            real_data, train_rows=None, validation_split=None, csv_separator=None, encoding=None, max_length=length,
            window_overlap=min(real_data.window_overlap, 16), **data
        ),
        model=replace(
            recipe.model, model_name=str(model_folder), revision=None, hf_token=None, lora_dropout=0.0,
            lora_target_modules=targets, lora_layers=None if recipe.model.lora_layers is None else [-1],
        ),
        train=replace(
            train, batch_size=min(train.batch_size, 4), micro_batch_tokens=None, eval_batch_size=None,
            gradient_accumulation_steps=min(train.gradient_accumulation_steps, 2), num_train_epochs=steps,
            max_steps=steps, eval_steps=steps, logging_steps=1, early_stopping_patience=None, report_to=[],
            metric_for_best_model=metric, pos_weight=weights,
        ),
        exp=replace(
            recipe.exp, output_root=str(folder / "outputs"), seeds=recipe.exp.seeds[:1], run_name=None, overwrite=False,
            baselines=False,
        ),
        source=str(mini.path),
    )  # fmt: skip
    write_text(mini.path, recipe_to_yaml(mini.recipe))
    return mini


def _write_model(recipe: Recipe, labels: LabelSpace, folder: Path, mini: Miniature) -> list[str]:
    """Write a small random model and a tokenizer; returns the names of the modules to adapt."""
    spec = recipe.model
    targets = spec.lora_target_modules
    try:
        mini.config, tokenizer = load_config(spec, labels), load_tokenizer(spec)
        config = shrink(mini.config)
    except UserError as error:
        kind = "BERT" if set(targets) <= BERT_MODULES else "Llama"
        mini.stand_ins.append(f"a {kind} replaces {spec.model_name}, which cannot be loaded ({_short(error)})")
        tokenizer = train_tokenizer(make_corpus(200, seed=0))
        width = HEADS * HEAD_WIDTH
        architecture: Any = BertConfig if kind == "BERT" else LlamaConfig
        config = architecture(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=LAYERS,
            num_attention_heads=HEADS, num_labels=len(labels.names), pad_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        if targets != ["all-linear"] and not set(targets) <= (BERT_MODULES if kind == "BERT" else LLAMA_MODULES):
            mini.stand_ins.append(f"LoRA on all linear layers replaces LoRA on {', '.join(targets)}")
            targets = ["all-linear"]
    torch.manual_seed(0)
    try:
        model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=spec.trust_remote_code)
    except (ValueError, RuntimeError, AttributeError, TypeError) as error:
        raise UserError(
            f"model.model_name: {spec.model_name} ({config.model_type}) cannot be shrunk for a rehearsal: "
            f"{_short(error)}; rehearse with a small model of the same family instead (model.model_name=...)"
        ) from error
    if spec.trust_remote_code:
        model.register_for_auto_class("AutoModelForSequenceClassification")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return targets


def _sample_data(recipe: Recipe, folder: Path, stand_ins: list[str]) -> tuple[dict[str, Any], LabelSpace]:
    """Write a sample of every split; returns the changed keys of the data section, and the labels."""
    files = recipe.data.files()
    missing = [path for path in files.values() if not Path(path).is_file()]
    if missing:
        stand_ins.append(f"generated rows replace {', '.join(missing)} (no such file)")
        return _generated_data(recipe, folder)
    tables = {name: read_table(path, f"data.{SPLIT_KEYS[name]}", recipe.data) for name, path in files.items()}
    labels = label_space(recipe, tables["train"])
    changed = {}
    for name, table in tables.items():
        rows = np.random.default_rng(0).permutation(len(table))[: ROWS[name]]
        hard_binary = labels.binary and not recipe.data.soft_labels
        if name == "train" and (labels.separator or labels.lists or labels.class_values or hard_binary):
            # Include every label, because a label that only validation has would be refused as unknown.
            first: dict[str, int] = {}
            for i, cell in enumerate(table[labels.columns[0]]):
                for value in soft_cell(cell_text(cell)) or names_in(cell_text(cell), labels):
                    first.setdefault(value, i)
            rows = np.union1d(rows, list(first.values()))
        path = folder / "data" / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.select(rows).to_csv(str(path))
        changed[SPLIT_KEYS[name]] = str(path)
    return changed, labels


def _generated_data(recipe: Recipe, folder: Path) -> tuple[dict[str, Any], LabelSpace]:
    """Like `_sample_data`, with generated rows in the columns of the recipe."""
    data, kind = recipe.data, recipe.model.problem_type
    fields = data.text_fields or [data.target_text_column or "text"]
    columns = [*([data.id_column] if data.id_column else []), *fields, *data.label_columns]
    rng = random.Random(0)
    texts = make_corpus(sum(ROWS.values()), seed=1)
    changed: dict[str, Any] = {"label_descriptions": None}
    for name in data.files():
        path = folder / "data" / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            for i in range(ROWS[name]):
                row = {data.id_column: f"{name}{i}"} if data.id_column else {}
                row |= dict.fromkeys(fields, texts.pop())
                # Every split gets all classes in turn.
                named = kind == "single_label_classification" or data.label_separator is not None
                single = f"class_{i % 3}" if named else str(i % 2)
                multi = kind == "multi_label_classification" and not named
                row |= {c: str(int(rng.random() < 0.4)) if multi else single for c in data.label_columns}
                if not multi and len(data.label_columns) > 1:
                    row |= {c: str(int(k == i % len(data.label_columns))) for k, c in enumerate(data.label_columns)}
                writer.writerow(row)
        changed[SPLIT_KEYS[name]] = str(path)
    mini = replace(data, validation_split=None, **changed)
    return changed, label_space(replace(recipe, data=mini), read_table(changed["train_csv"]))


def _short(error: BaseException) -> str:
    """The first sentence of an error, without its advice."""
    return str(error).split("\n")[0].split(";")[0][:160]
