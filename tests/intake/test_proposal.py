from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from llmcls.common.user_error import UserError
from llmcls.engine.hardware import Hardware
from llmcls.intake.proposal import MODELS, Choices, choose_model, dataset_name, propose, token_lengths
from llmcls.recipe.schema import DataSection


def test_the_model_grows_with_the_memory_of_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [choose_model(gib) for gib in (0, 6, 11, 16, 24, 80)] == [
        MODELS[0][1], MODELS[0][1], MODELS[1][1], MODELS[2][1], MODELS[3][1], MODELS[4][1],
    ]  # fmt: skip
    Path("demo/smollm2-135m").mkdir(parents=True)
    assert choose_model(0) == "demo/smollm2-135m"


def test_tokens_are_counted_where_the_model_is_a_folder(tiny_llama: Path) -> None:
    texts = ["a sturdy guitar for beginners"] * 3
    lengths, counted = token_lengths(texts, str(tiny_llama))
    assert counted
    estimate, counted = token_lengths(texts, "some/model")
    assert not counted
    assert 0.3 < estimate[0] / lengths[0] < 3


def test_what_the_user_says_is_not_guessed() -> None:
    table = datasets.Dataset.from_dict(
        {"t": ["one two three"] * 4, "k": ["a|b", "b", "a", "a|b"], "n": ["1", "2", "3", "4"]}
    )
    choices = Choices(["t"], ["k"], "n", "single_label_classification", None, "some/model", "val.csv", "test.csv")
    found = propose(table, "t.csv", DataSection("t", "t.csv", []), choices, Hardware([24.0], 1))
    assert (found.form.problem_type, found.form.separator) == ("single_label_classification", None)
    assert (found.data.id_column, found.data.val_csv, found.data.validation_split) == ("n", "val.csv", None)
    assert (found.model_name, found.gpu_gib) == ("some/model", 24.0)
    with pytest.raises(UserError, match=r"t\.csv has no column 'kk' \(--labels\); did you mean 'k'"):
        propose(table, "t.csv", DataSection("t", "t.csv", []), Choices(["t"], ["kk"]), Hardware())


def test_names_of_results_can_be_folders() -> None:
    assert [dataset_name(Path(p)) for p in ("a/My data.csv", "a/train.csv", "é?.csv", "?.csv")] == [
        "My_data", "a", "é", "data",
    ]  # fmt: skip
