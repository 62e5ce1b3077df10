"""What the checks run on: the device, the recipe or a stand-in for it, and its miniature."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from llmcls.datasets.products import TOPICS, make_corpus, write_data
from llmcls.diagnosis.findings import Finding, NotApplicable, Subject, ok, warning
from llmcls.engine.accelerator import open_accelerator
from llmcls.model.pretrained import DTYPES, load_config
from llmcls.model.tiny import train_tokenizer
from llmcls.recipe.schema import DataSection, ExpSection, ModelSection, Recipe, TrainSection
from llmcls.rehearsal.miniature import Miniature, make_miniature
from llmcls.training.inputs import Inputs, load_inputs

STEPS = 4
# Without a recipe, a Llama stands in whose layers are as wide as those of Llama-3.2-1B, with grouped heads; on a CPU,
# which would take minutes for them, as those of SmolLM2-135M.
LLAMA: dict[str, Any] = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 8192,
}  # fmt: skip
SMALL_LLAMA = LLAMA | {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3,
}  # fmt: skip


@functools.cache
def device_of(subject: Subject) -> torch.device:
    """The device that a training on this machine uses."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if accelerator is None else torch.device(accelerator.type, 0)


def dtype_of(subject: Subject) -> torch.dtype:
    """The precision of the recipe's computation."""
    return DTYPES[recipe_of(subject).model.torch_dtype]


@functools.cache
def recipe_of(subject: Subject) -> Recipe:
    """The recipe, or a stand-in: a Llama of common width, made-up texts, and the precision that the device likes."""
    if subject.recipe is not None:
        return subject.recipe
    folder = subject.folder / "stand-in"
    data, model = folder / "data", folder / "llama"
    write_data(data, 0, {"train": 97, "validation": 37})
    tokenizer = train_tokenizer(make_corpus(200, seed=0))
    tokenizer.save_pretrained(model)
    on_cpu = device_of(subject).type == "cpu"
    shape = SMALL_LLAMA if on_cpu else LLAMA
    LlamaConfig(**shape, vocab_size=len(tokenizer), pad_token_id=tokenizer.eos_token_id).save_pretrained(model)
    return Recipe(
        DataSection(
            dataset_name="doctor", train_csv=str(data / "train.csv"), val_csv=str(data / "validation.csv"),
            label_columns=list(TOPICS), id_column="uid", text_fields=["title", "description"],
        ),
        ModelSection(model_name=str(model), torch_dtype="float32" if on_cpu else "bfloat16"),
        TrainSection(report_to=[]),
        ExpSection(output_root=str(folder / "outputs")),
        source="stand-in",
    )  # fmt: skip


@functools.cache
def miniature_of(subject: Subject) -> Miniature:
    """The recipe in miniature, in the folder of the subject.

    Raises
    ------
    UserError
        If the data does not match the recipe, or the architecture cannot be shrunk.
    """
    return make_miniature(recipe_of(subject), subject.folder / "miniature", STEPS)


@functools.cache
def inputs_of(subject: Subject) -> Inputs:
    """Tokenizer, labels and splits of the miniature."""
    recipe = miniature_of(subject).recipe
    # Opened as a training does, because the first one decides about the device of all later ones.
    return load_inputs(recipe, open_accelerator(recipe))


def config_of(subject: Subject) -> Any:
    """The configuration of the real model.

    Raises
    ------
    NotApplicable
        If it cannot be loaded, which is a finding of `usable`.
    """
    if miniature_of(subject).config is None:
        raise NotApplicable("the model cannot be loaded; see `recipe`")
    return load_config(recipe_of(subject).model, inputs_of(subject).labels)


def usable(subject: Subject) -> Finding:
    """Whether the recipe's model and data are at hand."""
    if subject.recipe is None:
        layers = "SmolLM2-135M" if device_of(subject).type == "cpu" else "Llama-3.2-1B"
        return ok(f"none was given: a Llama with layers like those of {layers} stands in")
    recipe, mini = subject.recipe, miniature_of(subject)
    name = recipe.model.model_name
    shown = Path(name).name if Path(name).is_dir() else name
    if mini.config is None:
        # Loading it again says why it failed, and what to do.
        load_config(recipe.model, inputs_of(subject).labels)
    missing = [path for path in recipe.data.files().values() if not Path(path).is_file()]
    found = f"{shown} ({mini.config.model_type}), {recipe.model.problem_type}"
    if missing:
        return warning(
            f"{found}; {len(missing)} data file(s) do not exist, generated rows replace them",
            "prepare the data, then run `python -m llmcls.check` on the recipe",
        )
    return ok(found, model_type=mini.config.model_type)
