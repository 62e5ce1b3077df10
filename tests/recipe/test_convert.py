from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from llmcls.common.user_error import UserError
from llmcls.recipe.convert import convert, describe, unknown
from llmcls.recipe.load import load_recipe
from tests.helpers import refusal

TYPES: list[tuple[dict[str, Any], str]] = [
    ({"train__batch_size": "many"}, "recipe.yaml: train.batch_size is 'many'; it must be a whole number"),
    ({"train__lr_scheduler_type": "cosin"}, "must be one of cosine, linear, constant; did you mean cosine?"),
    ({"train__report_to": ["wandbb"]}, "train.report_to is 'wandbb'; it must be one of tensorboard, wandb"),
    ({"model__torch_dtype": "bf16"}, "model.torch_dtype is 'bf16'; it must be one of float32, bfloat16, float16"),
    ({"model__problem_type": "multilabel"}, "did you mean multi_label_classification?"),
    ({"data__label_columns": ["books", True]}, "data.label_columns[1] is True; it must be text (put it in quotes)"),
    ({"data__train_csv": None}, "data.train_csv is missing; it must be text"),
]


@pytest.mark.parametrize("changes, sentence", TYPES, ids=[sentence[:50] for _, sentence in TYPES])
def test_a_value_of_another_type_is_refused(write_recipe, capsys, changes: dict[str, Any], sentence: str) -> None:
    found = refusal(capsys, "folder", write_recipe(**changes))
    assert sentence in found
    assert len(found) < 300


@pytest.mark.parametrize(
    "value, hint, expected",
    [
        ("1e-4", float, 1e-4),
        (3, float, 3.0),
        (3.0, int, 3),
        (7, str, "7"),
        (3, list[int], [3]),
        (["a", 1], list[str], ["a", "1"]),
        ({"a": 1}, dict[str, str], {"a": "1"}),
        ("auto", int | Literal["auto"] | None, "auto"),
        (5, int | Literal["auto"] | None, 5),
        (None, int | None, None),
        ("max", Literal["mean", "max"], "max"),
    ],
    ids=str,
)
def test_what_cannot_be_misunderstood_is_converted(value: Any, hint: Any, expected: Any) -> None:
    found = convert("key", value, hint)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    "value, hint, sentence",
    [
        (3.5, int, "key is 3.5; it must be a whole number"),
        (True, int, "key is True; it must be a whole number"),
        (True, float, "key is True; it must be a number"),
        ("yes", bool, "key is 'yes'; it must be true or false"),
        (False, str, r"key is False; it must be text \(put it in quotes\)"),
        ([1, "x"], list[int], r"key\[1\] is 'x'; it must be a whole number"),
        ({"a": []}, dict[str, str], r"key\.a is \[\]; it must be text"),
        ("a", dict[str, str], "key is 'a'; it must be `name: text` lines"),
        ("maximum", Literal["mean", "max"], r"key is 'maximum'; it must be one of mean, max; did you mean max\?"),
    ],
    ids=str,
)
def test_what_could_be_misunderstood_is_refused(value: Any, hint: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        convert("key", value, hint)


def test_another_word_than_auto_is_refused(write_recipe) -> None:
    with pytest.raises(UserError, match="micro_batch_tokens is 'automatic'"):
        load_recipe(write_recipe(), ["micro_batch_tokens=automatic"])


def test_environment_variables_and_home_are_expanded(write_recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_DATA", "/data/set")
    path = write_recipe(
        data__train_csv="${MY_DATA}/train.csv", data__test_csv="~/t.csv", data__val_csv="${NONE:-v}.csv"
    )
    data = load_recipe(path).data
    assert data.train_csv == "/data/set/train.csv"
    assert data.test_csv == str(Path("~/t.csv").expanduser())
    assert data.val_csv == "v.csv"


def test_an_unset_variable_is_named(write_recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_DIR", raising=False)
    with pytest.raises(UserError, match=r"data\.train_csv uses \$\{NO_SUCH_DIR\}, which is not set"):
        load_recipe(write_recipe(data__train_csv="${NO_SUCH_DIR}/t.csv"))


def test_types_are_described_in_words() -> None:
    assert describe(list[int]) == "a list, each item a whole number"
    assert describe(str | None) == "text or null"


def test_an_unknown_name_gets_the_nearest_one() -> None:
    known = ["train.learning_rate", "train.batch_size"]
    assert unknown("train.learning_rte", known) == "train.learning_rte is not a key; did you mean learning_rate?"
    # Also if it is in another section.
    assert unknown("model.batch_size", known).endswith("did you mean batch_size?")
    assert "train.learning_rate, train.batch_size" in unknown("zzz", known)


def test_separators_and_prompts_are_taken_as_they_are(write_recipe) -> None:
    recipe = load_recipe(
        write_recipe(data__text_separator="~", data__label_separator=None, data__prompt="${a} {text} ~")
    )
    assert recipe.data.text_separator == "~"
    assert recipe.data.prompt == "${a} {text} ~"


def test_an_empty_variable_is_empty_or_takes_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMCLS_TEST_EMPTY", "")
    assert convert("key", "a${LLMCLS_TEST_EMPTY}b", str) == "ab"
    assert convert("key", "a${LLMCLS_TEST_EMPTY:-x}b", str) == "axb"


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), "inf", 10**400])
def test_a_number_that_is_not_finite_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match=r"key is .*; it must be a number"):
        convert("key", value, float)
