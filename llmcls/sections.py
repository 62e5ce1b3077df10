"""The four sections of a recipe: every key, its type and its default."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

ProblemType = Literal["multi_label_classification", "single_label_classification", "binary_classification"]
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass
class DataSection:
    """Where the texts are, which columns hold what, and how a text becomes tokens.

    label_separator: the one label column holds all labels of a row, as in ``a|b`` (separator ``|``).
    hierarchy_separator: labels are paths such as ``a/b/c``; a label then implies its ancestors ``a/b`` and ``a``.
    prompt: what the model reads, with ``{text}`` and, if wanted, ``{labels}``; label_descriptions: label to words.
    truncation: what is kept of a text that is longer than max_length: its head, its head and tail, or all of it in
        windows (overlapping by window_overlap tokens, max_windows at most) whose logits are pooled.
    """

    dataset_name: str
    train_csv: str
    label_columns: list[str]
    val_csv: str | None = None
    test_csv: str | None = None
    id_column: str | None = None
    text_fields: list[str] | None = None
    target_text_column: str | None = None
    text_separator: str = "\n"
    label_separator: str | None = None
    hierarchy_separator: str | None = None
    prompt: str | None = None
    label_descriptions: dict[str, str] | None = None
    max_length: int = 512
    truncation: Literal["head", "head_tail", "windows"] = "head"
    window_overlap: int = 32
    max_windows: int = 8
    window_pooling: Literal["mean", "max"] = "mean"


@dataclass
class ModelSection:
    """Which base model, how it is stored, what of it is trained, and how a text's states become one.

    lora_variant: plain; rank-stabilised (Kalajdzievski 2023); weight-decomposed (Liu et al. 2024, DoRA).
    lora_layers: adapt these layers only; negative numbers count from the last.
    pooling: which states of a decoder the head reads; bidirectional: every token sees the whole text.
    """

    model_name: str
    hf_token: str | None = field(default=None, repr=False)
    revision: str | None = None
    trust_remote_code: bool = False
    problem_type: ProblemType = "multi_label_classification"
    use_4bit: bool = False
    torch_dtype: Dtype = "bfloat16"
    lora_r: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.05
    lora_target_modules: list[str] = field(default_factory=lambda: ["all-linear"])
    lora_variant: Literal["lora", "rslora", "dora"] = "lora"
    lora_layers: list[int] | None = None
    pooling: Literal["last", "mean", "attention"] = "last"
    bidirectional: bool = False


@dataclass
class TrainSection:
    """How it is trained, and how its scores become decisions.

    group_by_length: optimizer steps of like lengths; a little less padding, other statistics of training.
    checkpoint_layers: how many layers recompute their activations, where gradient_checkpointing is on; null: all.
    threshold_metric: ``f1``, ``f<beta>`` or ``recall@precision=<p>``, on validation.
    threshold_shrinkage: positives in validation at which a label's own threshold counts as much as the global one.
    """

    batch_size: int = 4
    gradient_accumulation_steps: int = 8
    micro_batch_tokens: int | Literal["auto"] | None = None
    packing: bool | None = None
    group_by_length: bool = False
    eval_batch_size: int | None = None
    num_train_epochs: int = 3
    max_steps: int | None = None
    learning_rate: float = 2e-4
    head_learning_rate: float | None = None
    layer_decay: float | None = None
    lora_plus_ratio: float | None = None
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = 0.06
    optim_8bit_when_4bit: bool = True
    gradient_checkpointing: bool | None = None
    checkpoint_layers: int | None = None
    loss: Literal["cross_entropy", "focal", "asymmetric"] = "cross_entropy"
    focal_gamma: float = 2.0
    asymmetric_gamma_positive: float = 0.0
    asymmetric_gamma_negative: float = 4.0
    asymmetric_clip: float = 0.05
    pos_weight: Literal["balanced"] | None = None
    pos_weight_cap: float = 10.0
    label_smoothing: float = 0.0
    sampling: Literal["uniform", "balanced"] = "uniform"
    eval_steps: int | None = None
    logging_steps: int = 10
    early_stopping_patience: int | None = None
    metric_for_best_model: str = "f1_micro"
    thresholds: Literal["fixed", "global", "per_class"] = "per_class"
    threshold_metric: str = "f1"
    threshold_shrinkage: float = 20.0
    at_least_one_label: bool = False
    calibration: Literal["temperature", "isotonic"] | None = None
    save_total_limit: int = 1
    train_metrics_rows: int = 2000
    report_to: list[Literal["tensorboard", "wandb"]] = field(default_factory=lambda: ["tensorboard"])


@dataclass
class ExpSection:
    """Where the results go, which seeds are run, and whether baselines are trained beside (null: where it is quick)."""

    output_root: str = "outputs"
    seeds: list[int] = field(default_factory=lambda: [1])
    run_name: str | None = None
    overwrite: bool = False
    baselines: bool | None = None
