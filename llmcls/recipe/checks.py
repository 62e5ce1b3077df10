"""Checks of recipe values that have the right type but cannot work, alone or together."""

from __future__ import annotations

import codecs
import io
import re
from collections import Counter
from typing import Any

from llmcls.common.folder_names import folder_name_problem
from llmcls.common.nearest import nearest
from llmcls.recipe.defaults import selection_metric
from llmcls.recipe.metric_names import (
    LARGEST_K,
    METRIC_NAMES,
    POSITIVE_METRICS,
    RANKED_METRICS,
    WHOLE_METRICS,
    metric_names,
)
from llmcls.recipe.objective import parse_objective
from llmcls.recipe.schema import Recipe

# Larger counts mean nothing, and do not fit into the integers of numpy and of the tokenizers.
LARGEST = 2**31 - 1
LARGEST_SEED = 2**32 - 1


def check_recipe(recipe: Recipe) -> None:
    """Check all values of a recipe.

    Raises
    ------
    UserError
        If a value, or a combination of values, cannot work. The message names the file, the key, the value and what
        is allowed.
    """
    _check_ranges(recipe)
    _check_variants(recipe)
    _check_files(recipe)
    _check_columns(recipe)
    _check_metrics(recipe)
    _check_experiment(recipe)
    _check_folders(recipe)


def check_for_labels(recipe: Recipe, count: int, many: bool) -> None:
    """Check what depends on the number of labels, which only the training file tells.

    Parameters
    ----------
    recipe : Recipe
    count : int
        Number of labels.
    many : bool
        Whether only the most probable labels of a text are kept: see `llmcls.data.marks`.

    Raises
    ------
    UserError
        If a value needs more labels, or less.
    """
    metric, train = selection_metric(recipe), recipe.train
    if metric in RANKED_METRICS and not many:
        raise recipe.error(
            "train.metric_for_best_model", f"is {metric}, which is for tasks with thousands of labels; here are {count}"
        )
    if not many:
        return
    if metric in WHOLE_METRICS:
        raise recipe.error(
            "train.metric_for_best_model",
            f"is {metric}, which needs the probabilities of all {count:,} labels; use precision_at_1 or f1_micro",
        )
    if recipe.model.head_init in ("probe", "label_text"):
        raise recipe.error(
            "model.head_init",
            f"is {recipe.model.head_init}, which would take hours for {count:,} labels; set it to random",
        )
    if train.thresholds in ("per_class", "joint"):
        raise recipe.error(
            "train.thresholds",
            f"is {train.thresholds}, but most of {count:,} labels have too few rows for a threshold of their own; "
            "use global or auto",
        )
    if train.calibration is not None:
        raise recipe.error(
            "train.calibration",
            f"is {train.calibration}, which needs the scores of all {count:,} labels; set it to null",
        )


def _check_ranges(recipe: Recipe) -> None:
    """Check numbers against their limits."""
    data, model, train = recipe.data, recipe.model, recipe.train
    at_least = [
        ("data.max_length", data.max_length, 1),
        ("data.train_rows", data.train_rows, 1),
        ("data.train_rows_seed", data.train_rows_seed, 0),
        ("data.validation_split_seed", data.validation_split_seed, 0),
        ("model.lora_r", model.lora_r, 0),
        ("train.batch_size", train.batch_size, 1),
        ("train.gradient_accumulation_steps", train.gradient_accumulation_steps, 1),
        ("train.micro_batch_tokens", 1 if train.micro_batch_tokens == "auto" else train.micro_batch_tokens, 1),
        ("train.eval_batch_size", train.eval_batch_size, 1),
        ("train.num_train_epochs", train.num_train_epochs, 1),
        ("train.max_steps", train.max_steps, 1),
        ("train.weight_decay", train.weight_decay, 0),
        ("train.max_grad_norm", train.max_grad_norm, 0),
        ("train.max_skipped_steps", train.max_skipped_steps, 0),
        ("train.eval_steps", train.eval_steps, 1),
        ("train.logging_steps", train.logging_steps, 1),
        ("train.early_stopping_patience", train.early_stopping_patience, 1),
        ("train.checkpoint_layers", train.checkpoint_layers, 1),
        ("train.save_minutes", train.save_minutes, 0),
        ("train.stuck_minutes", train.stuck_minutes, 0),
        ("train.save_total_limit", train.save_total_limit, 1),
        ("train.train_metrics_rows", train.train_metrics_rows, 0),
        ("train.focal_gamma", train.focal_gamma, 0),
        ("train.asymmetric_gamma_positive", train.asymmetric_gamma_positive, 0),
        ("train.asymmetric_gamma_negative", train.asymmetric_gamma_negative, 0),
        ("train.pos_weight_cap", train.pos_weight_cap, 1),
        ("train.lora_plus_ratio", train.lora_plus_ratio, 1),
        ("train.threshold_shrinkage", train.threshold_shrinkage, 0),
        ("train.top_labels", train.top_labels, LARGEST_K),
        ("train.propensity_b", train.propensity_b, 0),
        ("data.window_overlap", data.window_overlap, 0),
        ("data.max_windows", data.max_windows, 1),
    ]
    for key, value, lowest in at_least:
        if value is not None and not value >= lowest:
            raise recipe.error(key, f"is {value}; it must be at least {lowest}")
        if value is not None and value > LARGEST:
            raise recipe.error(key, f"is {value}; it must be at most {LARGEST}")
    if 0 < train.stuck_minutes < 1:
        # A step, or an evaluation of a large model, may take as long without being stuck.
        raise recipe.error("train.stuck_minutes", f"is {train.stuck_minutes}; it must be 0 or at least 1")
    between = [
        ("data.validation_split", data.validation_split, 0, 1, "above 0 and below 1", False),
        ("train.learning_rate", train.learning_rate, 0, 10, "above 0 and below 10", False),
        ("train.head_learning_rate", train.head_learning_rate, 0, 10, "above 0 and below 10", False),
        ("train.layer_decay", train.layer_decay, 0, 1 + 1e-12, "above 0 and at most 1", False),
        ("model.lora_dropout", model.lora_dropout, 0, 1, "from 0 to below 1", True),
        ("train.warmup_ratio", train.warmup_ratio, 0, 1, "from 0 to below 1", True),
        ("train.label_smoothing", train.label_smoothing, 0, 1, "from 0 to below 1", True),
        ("train.propensity_a", train.propensity_a, 0, 2, "above 0 and below 2", False),
        ("train.asymmetric_clip", train.asymmetric_clip, 0, 1, "from 0 to below 1", True),
    ]
    for key, value, low, high, allowed, includes_low in between:
        if value is not None and not (low <= value < high if includes_low else low < value < high):
            raise recipe.error(key, f"is {value}; it must be {allowed}")
    weights = train.pos_weight if isinstance(train.pos_weight, dict) else {}
    if train.pos_weight == {}:
        raise recipe.error("train.pos_weight", "is empty; give labels their weights, or set it to null")
    for name, value in weights.items():
        if not 0 < value <= LARGEST:
            raise recipe.error(
                "train.pos_weight",
                f"gives {name!r} the weight {value:g}; it must be above 0 and at most {LARGEST}"
                + ("; remove the rows of a label that should not count" if value == 0 else ""),
            )


def _check_experiment(recipe: Recipe) -> None:
    """Check seeds, the run name, and the keys that need a validation file."""
    data, train, exp = recipe.data, recipe.train, recipe.exp
    if not exp.seeds:
        raise recipe.error("exp.seeds", "is empty; give at least one seed")
    if len(set(exp.seeds)) != len(exp.seeds) or min(exp.seeds) < 0 or max(exp.seeds) > LARGEST_SEED:
        raise recipe.error(
            "exp.seeds", f"is {exp.seeds}; seeds must be 0 or greater and different, and at most {LARGEST_SEED}"
        )
    needs_validation: list[tuple[str, Any]] = [("train.early_stopping_patience", train.early_stopping_patience)]
    needs_validation += [("train.calibration", train.calibration)]
    for key, value in needs_validation:
        if value is not None and data.val_csv is None and data.validation_split is None:
            raise recipe.error(
                key,
                f"is {value}, which needs data.val_csv; set it to a validation file, or data.validation_split=0.1, "
                f"or set {key}=null",
            )
    if data.val_csv is not None and data.validation_split is not None:
        raise recipe.error(
            "data.validation_split", "holds rows out where data.val_csv names a file; remove one of them"
        )


def _check_folders(recipe: Recipe) -> None:
    """Check the names that become folders: no name may lead out of `exp.output_root`, or into another run."""
    data, exp = recipe.data, recipe.exp
    if not exp.output_root:
        raise recipe.error("exp.output_root", "is empty; name a folder, such as outputs")
    problem = folder_name_problem(data.dataset_name)
    if problem:
        raise recipe.error(
            "data.dataset_name", f"is {data.dataset_name!r}, which {problem}; it names a folder in exp.output_root"
        )
    if exp.run_name is None:
        return
    if not re.fullmatch(r"[\w=.,+@-]+", exp.run_name):
        raise recipe.error("exp.run_name", f"is {exp.run_name!r}; use letters, digits and any of = . , + @ - _")
    problem = folder_name_problem(exp.run_name)
    if re.fullmatch(r"run_\d+", exp.run_name):
        problem = "is the folder of a seed"
    if problem:
        raise recipe.error("exp.run_name", f"is {exp.run_name!r}, which {problem}; choose another name")


def _check_variants(recipe: Recipe) -> None:
    """Check keys that exclude each other or depend on each other."""
    data, model, train = recipe.data, recipe.model, recipe.train
    if model.lora_r > 0 and not model.lora_alpha > 0:
        raise recipe.error("model.lora_alpha", f"is {model.lora_alpha}; it must be above 0")
    if model.use_4bit and model.lora_r == 0:
        raise recipe.error(
            "model.lora_r",
            "is 0 (full fine-tuning) while model.use_4bit is true: 4-bit weights cannot be trained; "
            "set lora_r to 1 or more, or model.use_4bit=false",
        )
    if model.lora_r > 0 and not model.lora_target_modules:
        raise recipe.error("model.lora_target_modules", "is empty; list module names, or use [all-linear]")
    multi = model.problem_type == "multi_label_classification"
    if not multi:
        for key, used in (("train.loss", train.loss == "asymmetric"), ("data.label_separator", data.label_separator)):
            if used:
                raise recipe.error(key, f"is for multi_label_classification; this recipe is {model.problem_type}")
        if data.hierarchy_separator or train.at_least_one_label:
            key = "data.hierarchy_separator" if data.hierarchy_separator else "train.at_least_one_label"
            raise recipe.error(key, f"is for multi_label_classification; this recipe is {model.problem_type}")
    if data.distilled_from and not data.soft_labels:
        raise recipe.error(
            "data.distilled_from", "names teachers; what they say are probabilities: set data.soft_labels=true"
        )
    if data.soft_labels and (train.loss == "asymmetric" or (train.loss == "focal" and not multi)):
        raise recipe.error(
            "train.loss",
            f"is {train.loss}, which is not defined for probabilities here (data.soft_labels); use cross_entropy"
            + (" or focal" if multi else ""),
        )
    if model.lora_r == 0:
        lora_only = [
            ("model.lora_variant", model.lora_variant != "lora", "lora"),
            ("model.lora_layers", model.lora_layers is not None, "null"),
            ("train.lora_plus_ratio", train.lora_plus_ratio is not None, "null"),
        ]
        for key, used, default in lora_only:
            if used:
                raise recipe.error(key, f"needs an adapter, and model.lora_r is 0; set it to {default}")
    if data.truncation == "windows" and data.window_overlap >= data.max_length:
        raise recipe.error(
            "data.window_overlap", f"is {data.window_overlap}; it must be below data.max_length ({data.max_length})"
        )
    if data.prompt is not None and "{text}" not in data.prompt:
        raise recipe.error("data.prompt", "must contain {text}, where the text is inserted")
    if data.prompt is not None and data.prompt.count("{text}") > 1 and data.truncation == "windows":
        raise recipe.error("data.prompt", "contains {text} more than once, which data.truncation: windows cannot cut")


def _check_files(recipe: Recipe) -> None:
    """Check how the files are written."""
    data = recipe.data
    separator = data.csv_separator
    if separator is not None and separator not in ("tab", r"\t") and (len(separator) != 1 or separator in '"\r\n'):
        raise recipe.error("data.csv_separator", f"is {separator!r}; it must be one character, or tab")
    if data.encoding is not None:
        try:
            # Python also has codecs that make no text, such as base64, and some that read no stream.
            io.TextIOWrapper(io.BytesIO(), encoding=data.encoding)
            codecs.getincrementaldecoder(data.encoding)
        except LookupError:
            near = nearest(data.encoding, ["utf-8", "utf-16", "latin-1", "cp1252", "cp1251", "gb18030", "shift_jis"])
            hint = f"; did you mean {near}?" if near else "; use a name such as utf-8, utf-16, cp1252 or latin-1"
            raise recipe.error("data.encoding", f"is {data.encoding!r}, which Python does not know{hint}") from None


def _check_columns(recipe: Recipe) -> None:
    """Check the columns that the recipe names; whether a table has them is checked when the table is read."""
    data = recipe.data
    if not data.text_fields and not data.target_text_column:
        raise recipe.error(
            "data.text_fields", "and data.target_text_column are both empty; list the columns that contain the text"
        )
    if not data.label_columns:
        raise recipe.error("data.label_columns", "is empty; list the label columns")
    if data.label_separator and len(data.label_columns) != 1:
        raise recipe.error(
            "data.label_columns",
            f"names {len(data.label_columns)} columns; with data.label_separator it must name a single column",
        )
    duplicates = sorted(column for column, times in Counter(data.label_columns).items() if times > 1)
    if duplicates:
        raise recipe.error("data.label_columns", f"names {', '.join(duplicates)} twice; remove the duplicates")
    text_columns = data.text_columns()
    for column in data.label_columns:
        if column in text_columns or column == data.id_column:
            raise recipe.error(
                "data.label_columns", f"names {column!r}, which is also the id or a text column; remove it"
            )
    several = recipe.model.problem_type == "multi_label_classification"
    several |= recipe.model.problem_type == "single_label_classification" and data.soft_labels
    if not several and len(data.label_columns) != 1:
        single = recipe.model.problem_type == "single_label_classification"
        raise recipe.error(
            "data.label_columns",
            f"names {len(data.label_columns)} columns; {recipe.model.problem_type} needs exactly one, "
            "which contains the class"
            + ("; a column of probabilities for each class needs data.soft_labels=true" if single else ""),
        )


def _check_metrics(recipe: Recipe) -> None:
    """Check the names of the selection metric and of the threshold metric."""
    name, problem_type = recipe.train.metric_for_best_model, recipe.model.problem_type
    if name in POSITIVE_METRICS and problem_type != "binary_classification":
        raise recipe.error(
            "train.metric_for_best_model",
            f"is {name}, which is for binary_classification; this recipe is {problem_type}",
        )
    if name is not None and name not in metric_names(problem_type):
        near = nearest(name, METRIC_NAMES)
        hint = f"did you mean {near}?" if near else "use f1_micro, or another metric of docs/recipes.md"
        raise recipe.error("train.metric_for_best_model", f"is {name!r}, which is not a metric; {hint}")
    try:
        parse_objective(recipe.train.threshold_metric)
    except ValueError as error:
        raise recipe.error("train.threshold_metric", f"is {recipe.train.threshold_metric!r}; {error}") from None
