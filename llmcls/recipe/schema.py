"""The schema of a recipe: every key, its type, its default and its documentation.

The key reference in the documentation is generated from this module.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from llmcls.common.user_error import UserError

ProblemType = Literal["multi_label_classification", "single_label_classification", "binary_classification"]
Dtype = Literal["float32", "bfloat16", "float16"]

# The recipe key that names the file of each split.
SPLIT_KEYS = {"train": "train_csv", "validation": "val_csv", "test": "test_csv"}


def _required(doc: str) -> Any:
    return dataclasses.field(metadata={"doc": doc, "literal": False, "secret": False})


def _key(default: Any, doc: str, literal: bool = False, secret: bool = False, **options: Any) -> Any:
    """A key with its default (a list is copied for each recipe) and its documentation.

    ``literal``: text is taken as it is; in other keys ``~`` and ``${VAR}`` are expanded. ``secret``: no message shows
    the value.
    """
    metadata = {"doc": doc, "literal": literal, "secret": secret}
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata=metadata, **options)
    return dataclasses.field(default=default, metadata=metadata, **options)


@dataclass
class DataSection:
    """Files, columns, and how a text becomes tokens."""

    dataset_name: str = _required("Name of the results folder.")
    train_csv: str = _required("Training file: CSV, TSV, Excel, JSONL or Parquet, chosen by the extension.")
    label_columns: list[str] = _required(
        "The 0/1 columns (multi-label), or the one column that holds the class or all labels."
    )
    val_csv: str | None = _key(None, "Validation file. Without it, the last model is kept.")
    test_csv: str | None = _key(None, "Test file.")
    validation_split: float | None = _key(
        None, "Without val_csv: the share of the training rows that is held out for validation, stratified by label."
    )
    validation_split_seed: int = _key(0, "Which rows; they are the same for every seed of exp.seeds.")
    csv_separator: str | None = _key(
        None,
        "What separates the cells of CSV files: one character, or `tab`. Default: as the file has it.",
        literal=True,
    )
    encoding: str | None = _key(
        None, "Encoding of the CSV files, such as `cp1252`. Default: byte order mark, UTF-8, or Windows-1252."
    )
    train_rows: int | None = _key(
        None, "Train on so many rows of the training file: a sample in which every label has its share. Default: all."
    )
    train_rows_seed: int = _key(0, "Which sample; of two samples with the same seed, the larger contains the smaller.")
    id_column: str | None = _key(None, "Column of unique row ids. Without it, rows are numbered from 0.")
    text_fields: list[str] | None = _key(None, "Text columns, joined by text_separator; empty cells are skipped.")
    target_text_column: str | None = _key(None, "The text column, if text_fields is empty.")
    text_separator: str = _key("\n", "What joins the text columns. The default is a line end.", literal=True)
    label_separator: str | None = _key(None, "The label column holds all labels of a row, as in `a|b`.", literal=True)
    hierarchy_separator: str | None = _key(
        None, "Labels are paths such as `a/b/c`; each label implies its ancestors `a/b` and `a`.", literal=True
    )
    soft_labels: bool = _key(
        False,
        "Cells of the label columns may be probabilities: numbers from 0 to 1, in a column for each label or class, or "
        '`{"a": 0.7, "b": 0.3}` in the one column. Training aims at them; all else takes labels from 0.5 on, or the '
        "most probable class.",
    )
    distilled_from: list[str] | None = _key(
        None, "The teachers that labelled a part of train_csv, for the report; set by `llmcls distill`.", literal=True
    )
    prompt: str | None = _key(
        None, "What the model reads, with `{text}` once or twice, and optionally `{labels}`.", literal=True
    )
    label_descriptions: dict[str, str] | None = _key(
        None, "Label to description, for `{labels}` in the prompt.", literal=True
    )
    max_length: int = _key(512, "Maximum number of tokens per text, or per window.")
    truncation: Literal["head", "head_tail", "windows"] = _key(
        "head", "What is read of a longer text: its head, its head and tail, or all of it in windows."
    )
    window_overlap: int = _key(32, "Tokens that neighbouring windows share.")
    max_windows: int = _key(8, "Maximum number of windows per text.")
    window_pooling: Literal["mean", "max"] = _key("mean", "How the logits of the windows become one.")

    def files(self) -> dict[str, str]:
        """The file of each split that the recipe names, by split: "train", "validation", "test".

        With ``validation_split`` the file of validation is that of training; `llmcls.data.holdout` tells their rows.
        """
        named = {split: getattr(self, key) for split, key in SPLIT_KEYS.items()}
        if self.validation_split is not None:
            named["validation"] = self.train_csv
        return {split: path for split, path in named.items() if path is not None}

    def text_columns(self) -> list[str]:
        """The columns that make up a text: ``text_fields``, or ``target_text_column``."""
        return list(self.text_fields) if self.text_fields else [str(self.target_text_column)]


@dataclass
class ModelSection:
    """The pretrained model, how it is stored, what is trained, and how token states are pooled."""

    model_name: str = _required("A model on the hub, or a folder.")
    hf_token: str | None = _key(
        None, "Token for the hub; default: `HF_TOKEN`. Never written or shown.", secret=True, repr=False
    )
    revision: str | None = _key(None, "Branch, tag or commit on the hub. Default: the newest.")
    trust_remote_code: bool = _key(False, "Run Python code that comes with the model.")
    problem_type: ProblemType = _key("multi_label_classification", "What is predicted.")
    use_4bit: bool = _key(False, "Store the frozen weights in NF4 with double quantization (QLoRA).")
    torch_dtype: Dtype = _key("bfloat16", "Precision of the computation.")
    lora_r: int = _key(8, "Rank of LoRA; 0 trains all weights.")
    lora_alpha: float = _key(16.0, "LoRA's scale is alpha / r.")
    lora_dropout: float = _key(0.05, "Dropout on the input of LoRA.")
    lora_target_modules: list[str] = _key(["all-linear"], "Names of the modules that get an adapter.")
    lora_variant: Literal["lora", "rslora", "dora"] = _key(
        "lora", "Plain LoRA, rank-stabilised (Kalajdzievski 2023), or weight-decomposed (Liu et al. 2024)."
    )
    lora_layers: list[int] | None = _key(
        None, "Numbers of the layers that get an adapter; negative numbers count from the last. Default: all."
    )
    pooling: Literal["last", "mean", "attention"] = _key(
        "last", "What the head of a decoder reads: the last token, the mean of all tokens, or a learned mean."
    )
    bidirectional: bool = _key(False, "Every token of a decoder sees the whole text. Needs packed micro-batches.")
    head_init: Literal["random", "probe", "label_text", "auto"] = _key(
        "random",
        "What the head starts from: random weights, a linear probe of the frozen model on the training texts and the "
        "words of the labels, or those words alone. `auto`: the probe, where the head has at most four weights for "
        "each training text and is linear, and the fit is quick.",
    )


@dataclass
class TrainSection:
    """Batches, optimizer, loss, evaluation, and how scores become decisions."""

    batch_size: int = _key(4, "Times gradient_accumulation_steps: the texts of an optimizer step on each process.")
    gradient_accumulation_steps: int = _key(8, "See batch_size.")
    micro_batch_tokens: int | Literal["auto"] | None = _key(
        None,
        "Tokens per forward pass. `auto` finds the fastest value that fits and stores it in "
        "`output_root/budgets.json`. Default: `auto` on GPUs, unless the engine shards; else batch_size x max_length. "
        "The results do not depend on it.",
    )
    packing: bool | None = _key(
        None, "Texts in one row without padding. Default: where the model allows it; `true` insists."
    )
    kernels: Literal["auto", "off"] = _key(
        "auto",
        "Fused LoRA, norms, gated MLPs and rotary embedding where a trial shows the same states and gradients; "
        "`off` keeps the modules of transformers and peft.",
    )
    deterministic: bool = _key(
        False,
        "Deterministic kernels only. On a GPU, the same run twice, and a resumed run, are then the same to the last "
        "bit; without it they differ by rounding. Slower, most of all the backward pass of attention. CPUs are "
        "deterministic in any case.",
    )
    group_by_length: bool = _key(
        False, "Optimizer steps of similar lengths. Changes the statistics; little gain where texts are packed."
    )
    eval_batch_size: int | None = _key(
        None, "Texts of max_length tokens per evaluation pass. Default: four times the training pass."
    )
    num_train_epochs: int = _key(3, "Epochs.")
    max_steps: int | None = _key(None, "Optimizer steps, if they end before the epochs.")
    learning_rate: float = _key(2e-4, "Peak learning rate.")
    head_learning_rate: float | None = _key(None, "Peak learning rate of the head. Default: learning_rate.")
    layer_decay: float | None = _key(None, "Factor on the learning rate for each layer below the last.")
    lora_plus_ratio: float | None = _key(None, "Factor on the learning rate of LoRA's B matrices (LoRA+).")
    weight_decay: float = _key(0.01, "AdamW's weight decay; not applied to biases and norms.")
    max_grad_norm: float = _key(1.0, "Gradient clipping; 0 turns it off.")
    max_skipped_steps: int = _key(
        10, "A step whose gradient is not a number is left out; training stops after more than so many."
    )
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = _key("cosine", "Schedule after the warm-up.")
    warmup_ratio: float = _key(0.06, "Share of the steps with a rising learning rate.")
    optim_8bit_when_4bit: bool = _key(True, "8-bit AdamW for a 4-bit model that trains 100 million weights or more.")
    gradient_checkpointing: bool | None = _key(
        None, "Recompute activations in the backward pass. Default: with a 4-bit model, unless they fit into the GPU."
    )
    checkpoint_layers: int | None = _key(None, "Number of layers that recompute their activations. Default: all.")
    loss: Literal["cross_entropy", "focal", "asymmetric"] = _key("cross_entropy", "Training loss.")
    focal_gamma: float = _key(2.0, "Exponent of the focal loss.")
    asymmetric_gamma_positive: float = _key(0.0, "Exponent of the asymmetric loss for positives.")
    asymmetric_gamma_negative: float = _key(4.0, "Exponent of the asymmetric loss for negatives.")
    asymmetric_clip: float = _key(0.05, "Negatives below this probability do not count in the asymmetric loss.")
    pos_weight: dict[str, float] | Literal["balanced"] | None = _key(
        None,
        "Weights of the labels in the loss: on the positives of each label, or on each class. `balanced` weights by "
        "rarity; `{urgent: 5, spam: 0.5}` by hand, and labels that are not named have 1.",
        literal=True,
    )
    pos_weight_cap: float = _key(10.0, "Upper limit of the weights of `pos_weight: balanced`.")
    label_smoothing: float = _key(0.0, "Label smoothing.")
    sampling: Literal["uniform", "balanced"] = _key("uniform", "`balanced` draws rows with rare labels more often.")
    eval_steps: int | None = _key(None, "Optimizer steps between evaluations. Default: each epoch.")
    logging_steps: int = _key(10, "Optimizer steps between log lines.")
    early_stopping_patience: int | None = _key(None, "Evaluations without improvement before training stops.")
    metric_for_best_model: str | None = _key(
        None,
        "Metric that selects the best model, and that thresholds serve; a name in metrics.json. It is measured with "
        "the thresholds that the run would take. Default: `f1_micro`, in binary tasks `f1_positive`.",
    )
    thresholds: Literal["auto", "fixed", "global", "per_class", "joint"] = _key(
        "auto",
        "Decision thresholds, tuned on validation: one for all labels, one for each label alone, one for each label "
        "chosen together for metric_for_best_model, or 0.5. `auto`: `joint` or `per_class`, by the metric, unless "
        "cross-validation prefers 0.5.",
    )
    threshold_metric: str = _key(
        "f1",
        "F1 weights precision and recall alike, `f<beta>` does not; `recall@precision=<p>` is the highest recall at "
        "that precision.",
    )
    threshold_shrinkage: float = _key(
        20.0, "Number of positives at which the threshold of a label counts as much as the global one."
    )
    at_least_one_label: bool = _key(False, "A text without a label gets the one closest to its threshold.")
    calibration: Literal["temperature", "isotonic"] | None = _key(None, "Calibration, fitted on validation.")
    top_labels: int = _key(
        100,
        "With more than 1,000 labels: how many of the most probable ones evaluations and predictions keep of a text.",
    )
    propensity_a: float = _key(0.55, "A of the propensities in `propensity_precision_at_<k>` (Jain et al. 2016).")
    propensity_b: float = _key(1.5, "B of the propensities.")
    save_minutes: float = _key(
        10.0, "Minutes between checkpoints, beside those of evaluations; 0 for none between evaluations."
    )
    stuck_minutes: float = _key(
        30.0,
        "Minutes without a sign of life after which a training ends: it says which rank waits where. 0 waits for ever.",
    )
    save_total_limit: int = _key(1, "Number of best checkpoints that are kept.")
    train_metrics_rows: int = _key(2000, "Training rows that the final evaluation scores; 0 for none.")
    report_to: list[Literal["tensorboard", "wandb", "mlflow"]] = _key(
        ["tensorboard"], "Trackers: `tensorboard`, `wandb`, `mlflow`. metrics.jsonl is always written."
    )
    wandb_project: str | None = _key(None, "Project of wandb. Default: `WANDB_PROJECT`, else data.dataset_name.")
    wandb_entity: str | None = _key(None, "User or team of wandb. Default: that of the login.")
    tracking_group: str | None = _key(
        None, "wandb and MLflow show runs of one group together. Default: the experiment, so all seeds of a recipe."
    )
    tracking_tags: list[str] = _key([], "Tags of the runs in wandb and MLflow, beside model and data set.")
    tracking_texts: bool = _key(
        True, "Whether trackers get mistakes with their texts and, in wandb and MLflow, the report."
    )


@dataclass
class ExpSection:
    """Where results go, and which seeds are trained."""

    output_root: str = _key("outputs", "Root of all results.")
    seeds: list[int] = _key([1], "Seeds, trained one after the other.")
    run_name: str | None = _key(None, "One more folder level, to keep variants apart.")
    overwrite: bool = _key(False, "Replace runs of another recipe. A run of the same recipe resumes, or is kept.")
    baselines: bool | None = _key(
        None,
        "Baselines on the same splits: majority, TF-IDF, and a linear probe of the frozen model. Default: those that "
        "are quick, and the probe wherever the head starts from it.",
    )


@dataclass
class Recipe:
    """A whole experiment. ``source`` is the file it was read from, for error messages."""

    data: DataSection
    model: ModelSection
    train: TrainSection
    exp: ExpSection
    source: str = "recipe"

    def error(self, key: str, problem: str) -> UserError:
        """An error about ``key`` ("section.key") of this recipe, ready to raise."""
        return UserError(f"{self.source}: {key} {problem}")


SECTIONS: dict[str, type[Any]] = {
    "data": DataSection,
    "model": ModelSection,
    "train": TrainSection,
    "exp": ExpSection,
}
