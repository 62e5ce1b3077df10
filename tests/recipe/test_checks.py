"""Values of the right type that cannot work: each is refused in one sentence that names the key and the value."""

from __future__ import annotations

import re
from typing import Any

import pytest

from llmcls.common.user_error import UserError
from llmcls.recipe.load import load_recipe
from llmcls.recipe.metric_names import METRIC_NAMES
from tests.helpers import refusal

Changes = dict[str, Any]
SINGLE: Changes = {"model__problem_type": "single_label_classification", "data__label_columns": ["kind"]}

VALUES: list[tuple[Changes, str]] = [
    ({"train__batch_size": 0}, "train.batch_size is 0; it must be at least 1"),
    ({"train__stuck_minutes": 1e-30}, "train.stuck_minutes is 1e-30; it must be 0 or at least 1"),
    ({"train__learning_rate": -1}, "train.learning_rate is -1.0; it must be above 0"),
    ({"train__metric_for_best_model": "f1_mikro"}, "train.metric_for_best_model is 'f1_mikro', which is not a metric"),
    ({"train__threshold_metric": "accuracy"}, "train.threshold_metric is 'accuracy'; it must be f1"),
    ({"model__lora_dropout": 1.0}, "model.lora_dropout is 1.0; it must be from 0 to below 1"),
    ({"model__lora_alpha": 0}, "model.lora_alpha is 0.0; it must be above 0"),
    ({"model__lora_target_modules": []}, "model.lora_target_modules is empty"),
    ({"data__label_columns": []}, "data.label_columns is empty"),
    ({"data__label_columns": ["books", "books"]}, "data.label_columns names books twice"),
    ({"data__label_columns": ["title"]}, "names 'title', which is also the id or a text column"),
    ({"data__label_columns": ["uid"]}, "names 'uid', which is also the id or a text column"),
    ({"data__text_fields": None}, "data.text_fields and data.target_text_column are both empty"),
    ({"data__csv_separator": ";;"}, "data.csv_separator is ';;'; it must be one character, or tab"),
    ({"data__encoding": "latin-l"}, "data.encoding is 'latin-l', which Python does not know; did you mean latin-1?"),
    ({"data__encoding": "base64"}, "data.encoding is 'base64', which Python does not know"),
    ({"data__validation_split": 0.1}, "data.validation_split holds rows out where data.val_csv names a file"),
    ({"data__prompt": "no place"}, "data.prompt must contain {text}, where the text"),
    (
        {"data__prompt": "{text} and {text}", "data__truncation": "windows", "data__window_overlap": 4},
        "data.prompt contains {text} more than once, which data.truncation: windows cannot cut",
    ),
    ({"exp__seeds": []}, "exp.seeds is empty"),
    ({"exp__seeds": [1, 1]}, "exp.seeds is [1, 1]; seeds must be 0 or greater and different"),
    ({"exp__seeds": [-1]}, "exp.seeds is [-1]"),
    ({"exp__run_name": "a/b"}, "exp.run_name is 'a/b'; use letters"),
    ({"exp__run_name": ".."}, "exp.run_name is '..', which is not the name of a folder"),
    ({"exp__run_name": ""}, "exp.run_name is ''"),
    ({"exp__run_name": "run_1"}, "exp.run_name is 'run_1', which is the folder of a seed; choose another name"),
    ({"exp__output_root": ""}, "exp.output_root is empty"),
    ({"data__dataset_name": ""}, "data.dataset_name is '', which is empty"),
    ({"data__dataset_name": "/abs/path"}, "data.dataset_name is '/abs/path', which has a path separator"),
    ({"data__dataset_name": "../../../x"}, "data.dataset_name is '../../../x', which has a path separator"),
    ({"data__dataset_name": "a\n"}, "data.dataset_name is 'a\\n', which has a character that cannot be printed"),
]
TOGETHER: list[tuple[Changes, str]] = [
    ({"model__use_4bit": True, "model__lora_r": 0}, "4-bit weights cannot be trained"),
    ({"model__lora_r": 0, "model__lora_variant": "dora"}, "model.lora_variant needs an adapter"),
    ({"model__lora_r": 0, "model__lora_layers": [0]}, "model.lora_layers needs an adapter"),
    ({"model__lora_r": 0, "train__lora_plus_ratio": 4.0}, "train.lora_plus_ratio needs an adapter"),
    ({"data__val_csv": None, "train__early_stopping_patience": 2}, "which needs data.val_csv"),
    ({"data__val_csv": None, "train__calibration": "temperature"}, "temperature, which needs data.val_csv"),
    ({"data__truncation": "windows", "data__window_overlap": 64}, "data.window_overlap is 64; it must be below"),
    ({"model__problem_type": "binary_classification"}, "names 10 columns; binary_classification needs exactly one"),
    (SINGLE | {"train__loss": "asymmetric"}, "train.loss is for multi_label"),
    (
        {"train__metric_for_best_model": "f1_positive"},
        "is f1_positive, which is for binary_classification; this recipe",
    ),
    (SINGLE | {"train__at_least_one_label": True}, "train.at_least_one_label is for multi_label"),
    (SINGLE | {"data__hierarchy_separator": "/"}, "data.hierarchy_separator is for multi_label"),
    (SINGLE | {"data__label_separator": "|"}, "data.label_separator is for multi_label"),
    (
        {"data__label_separator": "|", "data__label_columns": ["a", "b"]},
        "data.label_columns names 2 columns; with",
    ),
]

# Every key with a lowest value, and that value.
LOWEST = {
    "data.max_length": 1, "data.max_windows": 1, "data.window_overlap": 0, "model.lora_r": 0,
    "train.gradient_accumulation_steps": 1, "train.micro_batch_tokens": 1, "train.eval_batch_size": 1,
    "train.num_train_epochs": 1, "train.max_steps": 1, "train.weight_decay": 0, "train.max_grad_norm": 0,
    "train.eval_steps": 1, "train.logging_steps": 1, "train.early_stopping_patience": 1, "train.checkpoint_layers": 1,
    "train.save_total_limit": 1, "train.train_metrics_rows": 0, "train.focal_gamma": 0,
    "train.asymmetric_gamma_positive": 0, "train.asymmetric_gamma_negative": 0, "train.pos_weight_cap": 1,
    "train.lora_plus_ratio": 1, "train.threshold_shrinkage": 0,
}  # fmt: skip
# Every key with two ends: values that are allowed, and values that are not.
BETWEEN = {
    "train.head_learning_rate": ([1e-9, 9.9], [0, 10, -1]),
    "train.layer_decay": ([0.1, 1], [0, 1.1]),
    "train.warmup_ratio": ([0, 0.99], [1, -0.1]),
    "train.label_smoothing": ([0, 0.99], [1, -0.1]),
    "train.asymmetric_clip": ([0, 0.99], [1, -0.1]),
}


@pytest.mark.parametrize("changes, sentence", VALUES, ids=[sentence[:50] for _, sentence in VALUES])
def test_an_impossible_value_is_refused(write_recipe, capsys, changes: Changes, sentence: str) -> None:
    found = refusal(capsys, "folder", write_recipe(**changes))
    assert "recipe.yaml: " in found
    assert sentence in found
    assert len(found) < 300


@pytest.mark.parametrize("changes, sentence", TOGETHER, ids=[sentence[:50] for _, sentence in TOGETHER])
def test_keys_that_exclude_each_other_are_refused(write_recipe, changes: Changes, sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        load_recipe(write_recipe(**changes))


@pytest.mark.parametrize("key", LOWEST)
def test_the_lowest_value_is_allowed_and_one_less_is_not(write_recipe, key: str) -> None:
    path = write_recipe()
    load_recipe(path, [f"{key}={LOWEST[key]}"])
    with pytest.raises(UserError, match=f"{key} is .*; it must be at least {LOWEST[key]}$"):
        load_recipe(path, [f"{key}={LOWEST[key] - 1}"])


@pytest.mark.parametrize("key", BETWEEN)
def test_the_ends_of_a_range_are_kept(write_recipe, key: str) -> None:
    path, (allowed, refused) = write_recipe(), BETWEEN[key]
    for value in allowed:
        load_recipe(path, [f"{key}={value}"])
    for value in refused:
        with pytest.raises(UserError, match=f"{key} is .*; it must be (from|above) 0"):
            load_recipe(path, [f"{key}={value}"])


def test_every_metric_may_select_the_best_model_and_a_misspelt_one_may_not(write_recipe) -> None:
    path = write_recipe()
    for name in METRIC_NAMES:
        assert load_recipe(path, [f"metric_for_best_model={name}"]).train.metric_for_best_model == name
    with pytest.raises(UserError, match=r"'f1_mikro', which is not .*; did you mean f1_micro\?$"):
        load_recipe(path, ["metric_for_best_model=f1_mikro"])
