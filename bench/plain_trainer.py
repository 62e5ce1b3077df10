"""The competitor: a plain script for multi-label LoRA with the Hugging Face `Trainer`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.material import now

# The rows that `Trainer` predicts at once if its script does not say.
DEFAULT_EVAL_BATCH = 8


def plain_model(recipe: Any, pad_token_id: int) -> Any:
    """The model of a recipe as a plain script builds it: loaded by transformers, with an adapter of peft."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForSequenceClassification

    spec = recipe.model
    model = AutoModelForSequenceClassification.from_pretrained(
        spec.model_name, num_labels=len(recipe.data.label_columns), problem_type="multi_label_classification",
        dtype=getattr(torch, spec.torch_dtype),
    )  # fmt: skip
    model.config.pad_token_id = pad_token_id
    return get_peft_model(
        model,
        LoraConfig(
            task_type=TaskType.SEQ_CLS, r=spec.lora_r, lora_alpha=spec.lora_alpha, lora_dropout=spec.lora_dropout,
            target_modules=spec.lora_target_modules,
        ),
    )  # fmt: skip


def time_trainer(
    model: Any, recipe: Any, tokens: Sequence[np.ndarray], values: np.ndarray, batch_size: int, folder: Path
) -> float:
    """Time one epoch of `Trainer` over given tokens, at 32 texts a step, after three steps to warm up.

    Parameters
    ----------
    model : nn.Module
        From `plain_model`.
    recipe : Recipe
    tokens : sequence of int [length]
        One array per text.
    values : float32 [texts, labels]
    batch_size : int
        Texts per forward pass, a divisor of 32.
    folder : Path
        Output folder of the `Trainer`.

    Returns
    -------
    float
        Seconds from the first step of the epoch to the end of the last, without what `Trainer` prepares before.
    """
    from datasets import Dataset
    from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):
        start = seconds = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not self.start:
                self.start = now()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.seconds = now() - self.start

    texts = Dataset.from_dict({"input_ids": [ids.tolist() for ids in tokens], "labels": values.tolist()})
    tokenizer = AutoTokenizer.from_pretrained(recipe.model.model_name)
    tokenizer.padding_side = "right"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    for rows in (96, len(texts)):
        arguments = TrainingArguments(
            output_dir=str(folder), per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=32 // batch_size, num_train_epochs=1,
            learning_rate=recipe.train.learning_rate, max_grad_norm=recipe.train.max_grad_norm,
            bf16=recipe.model.torch_dtype == "bfloat16", logging_steps=1000, save_strategy="no", report_to=[],
            use_cpu=not torch.cuda.is_available(), disable_tqdm=True,
        )  # fmt: skip
        clock = Clock()
        trainer = Trainer(
            model=model, args=arguments, train_dataset=texts.select(range(rows)), callbacks=[clock],
            data_collator=DataCollatorWithPadding(tokenizer), processing_class=tokenizer,
        )  # fmt: skip
        trainer.train()
    return clock.seconds


def train_with_trainer(
    recipe: Any, seed: int, batch_size: int, accumulation: int, grouped: bool, folder: Path
) -> dict[str, float]:
    """Train with `Trainer` and dynamic padding on the data of a recipe.

    Parameters
    ----------
    recipe : Recipe
    seed : int
    batch_size : int
        Texts per forward pass.
    accumulation : int
        Forward passes per optimizer step.
    grouped : bool
        Whether to draw batches of similar lengths.
    folder : Path
        Output folder of the `Trainer`.

    Returns
    -------
    dict
        "seconds" of training, number of training "samples", seconds of predicting the test split with four times as
        many texts in a forward pass and with 8 ("predicting 16" and "predicting 8" at batch size 4), on it "f1" (micro,
        at 0.5), "f1_macro" and "average_precision" (macro), and of the logged gradients before clipping
        "first_gradient_norm" and "clipped_share", the share above the limit of the recipe.
    """
    from datasets import load_dataset
    from sklearn.metrics import average_precision_score, f1_score
    from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

    data, spec, train = recipe.data, recipe.model, recipe.train
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(spec.model_name)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = plain_model(recipe, tokenizer.pad_token_id)

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        columns = [batch[f] for f in data.text_fields]
        texts = ["\n".join(part for part in row if part) for row in zip(*columns, strict=True)]
        encoded = tokenizer(texts, truncation=True, max_length=data.max_length)
        labels = zip(*(batch[c] for c in data.label_columns), strict=True)
        encoded["labels"] = [[float(v) for v in row] for row in labels]
        encoded["length"] = [len(ids) for ids in encoded["input_ids"]]
        return encoded

    files = {"train": str(data.train_csv), "test": str(data.test_csv)}
    sets = load_dataset("csv", data_files=files, keep_default_na=False)
    sets = sets.map(encode, batched=True, remove_columns=sets["train"].column_names)
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation,
        per_device_eval_batch_size=4 * batch_size, num_train_epochs=train.num_train_epochs,
        learning_rate=train.learning_rate, weight_decay=train.weight_decay, max_grad_norm=train.max_grad_norm,
        lr_scheduler_type=train.lr_scheduler_type,
        warmup_steps=train.warmup_ratio, seed=seed, bf16=spec.torch_dtype == "bfloat16",
        logging_steps=train.logging_steps, logging_first_step=True,
        save_strategy="no", report_to=[], use_cpu=not torch.cuda.is_available(), disable_tqdm=True,
        dataloader_pin_memory=False, train_sampling_strategy="group_by_length" if grouped else "random",
    )  # fmt: skip
    trainer = Trainer(
        model=model, args=arguments, train_dataset=sets["train"], data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )  # fmt: skip
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    predicting = {}
    for rows in (arguments.per_device_eval_batch_size, DEFAULT_EVAL_BATCH):
        arguments.per_device_eval_batch_size = rows
        start = time.perf_counter()
        logits = trainer.predict(sets["test"]).predictions
        predicting[f"predicting {rows}"] = time.perf_counter() - start
    true = np.array(sets["test"]["labels"])
    norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    return {
        "seconds": seconds,
        "samples": float(len(sets["train"]) * train.num_train_epochs),
        **predicting,
        "f1": float(f1_score(true, logits > 0, average="micro", zero_division=0)),
        "f1_macro": float(f1_score(true, logits > 0, average="macro", zero_division=0)),
        "average_precision": float(average_precision_score(true, logits, average="macro")),
        "first_gradient_norm": float(norms[0]),
        "clipped_share": float(np.mean(np.array(norms) > train.max_grad_norm)),
    }
