from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from llmcls import check
from llmcls.init import main
from llmcls.recipe.load import load_recipe
from tests.helpers import read_json, refusal, train

pytestmark = pytest.mark.slow

MULTI, SINGLE, BINARY = (f"{kind}_classification" for kind in ("multi_label", "single_label", "binary"))
WORDS = {"joy": "happy smile laugh", "anger": "furious shout rage", "fear": "afraid dark tremble"}


def rows(labels_of_row: Callable[[random.Random], list[str]]) -> list[tuple[str, list[str]]]:
    """Sixty short texts and their labels."""
    rng = random.Random(0)
    found = []
    for i in range(60):
        labels = labels_of_row(rng)
        words = [word for label in labels for word in WORDS[label].split()] or ["nothing"]
        found.append((f"Message {i}, they {rng.choice(words)} and; {rng.choice(words)} at home", labels))
    return found


def several(rng: random.Random) -> list[str]:
    return sorted(rng.sample(list(WORDS), rng.choice((0, 1, 1, 2))))


def one(rng: random.Random) -> list[str]:
    return [rng.choice(list(WORDS))]


def frame(labels_of_row: Callable[[random.Random], list[str]], **columns: Callable[[list[str]], Any]) -> pd.DataFrame:
    """The texts with columns made from their labels."""
    found = rows(labels_of_row)
    return pd.DataFrame(
        {"text": [text for text, _ in found]} | {k: [f(x) for _, x in found] for k, f in columns.items()}
    )


def marks() -> dict[str, Callable[[list[str]], int]]:
    return {label: lambda labels, label=label: int(label in labels) for label in WORDS}


# The file, and what the recipe must say about it.
KINDS: dict[str, tuple[Callable[[Path], Any], dict[str, Any]]] = {
    "Excel, European CSV with classes": (
        lambda path: frame(one, Kategorie=lambda x: f"{x[0]} é").to_csv(path, sep=";", index=False, encoding="cp1252"),
        {"problem_type": SINGLE, "label_columns": ["Kategorie"], "encoding": "cp1252", "id_column": None},
    ),
    "0/1 columns and an id": (
        lambda path: frame(several, **marks()).assign(message_id=range(100, 160)).to_csv(path, index=False),
        {"problem_type": MULTI, "label_columns": list(WORDS), "id_column": "message_id"},
    ),
    "pandas lists with an index": (
        lambda path: frame(several, emotions=list).to_csv(path),
        {"problem_type": MULTI, "label_columns": ["emotions"], "label_separator": None},
    ),
    "labels with a separator, tabs": (
        lambda path: frame(several, tags="|".join).to_csv(path, sep="\t", index=False),
        {"problem_type": MULTI, "label_columns": ["tags"], "label_separator": "|"},
    ),
    "two classes": (
        lambda path: frame(one, x=lambda x: "spam" if x == ["joy"] else "ham").to_csv(path, index=False),
        {"problem_type": BINARY, "label_columns": ["x"]},
    ),
    "one truth column, UTF-16": (
        lambda path: frame(one, is_joy=lambda x: x == ["joy"]).to_csv(path, sep="\t", index=False, encoding="utf-16"),
        {"problem_type": BINARY, "label_columns": ["is_joy"], "text_fields": ["text"]},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_for_a_table_is_accepted_by_check_and_trains(
    tiny_llama: Path, tmp_path: Path, log_lines: list[str], capsys, kind: str
) -> None:
    write, expected = KINDS[kind]
    write(tmp_path / "messages.csv")
    recipe = tmp_path / "recipe.yaml"
    main([str(tmp_path / "messages.csv"), "--model", str(tiny_llama), "--out", str(recipe)])
    loaded = load_recipe(recipe)
    found = vars(loaded.data) | {"problem_type": loaded.model.problem_type}
    assert {key: found[key] for key in expected} == expected
    assert loaded.data.validation_split == 0.2
    assert f"wrote {recipe}; next: python -m llmcls.check {recipe}" in capsys.readouterr().out
    small = [f"exp.output_root={tmp_path / 'out'}", "exp.baselines=false", "report_to=[]", "max_steps=2", "kernels=off"]
    small += ["head_init=random", "torch_dtype=float32", "thresholds=fixed", "train_metrics_rows=0"]
    if kind == next(iter(KINDS)):
        check.main([str(recipe), *small])
        assert log_lines[-1] == "ok"
    run = train(recipe, *small) / "run_0"
    assert read_json(run / "metrics.json")["validation"]["f1_micro"] >= 0


def test_other_splits_beside_the_file_are_used_if_they_have_the_labels(tmp_path: Path, capsys) -> None:
    table = frame(one, label=lambda x: x[0])
    folder = tmp_path / "news"
    folder.mkdir()
    table.to_csv(folder / "train.csv", index=False)
    table.to_csv(folder / "val.csv", index=False)
    table.drop(columns="label").to_csv(folder / "test.csv", index=False)
    main([str(folder / "train.csv"), "--out", str(tmp_path / "r.yaml")])
    data = load_recipe(tmp_path / "r.yaml").data
    assert (data.dataset_name, data.val_csv, data.test_csv) == ("news", str(folder / "val.csv"), None)
    assert "test.csv: has no column 'label', so the recipe does not use it" in capsys.readouterr().out
    assert "r.yaml exists; give another file with --out" in refusal(
        capsys, "init", folder / "train.csv", "--out", tmp_path / "r.yaml"
    )


def test_what_the_table_does_not_tell_is_asked_for_on_a_terminal_or_refused(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = frame(one, colour=lambda x: x[0], shape=lambda x: x[0][::-1])
    table.to_csv(tmp_path / "t.csv", index=False)
    recipe = tmp_path / "r.yaml"
    found = refusal(capsys, "init", tmp_path / "t.csv", "--out", recipe)
    assert "more than one column may hold the labels: colour; shape; name it with --labels COLUMN" in found
    assert not recipe.exists()
    answers = iter(["7", "2"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: next(answers))
    main([str(tmp_path / "t.csv"), "--out", str(recipe)])
    assert load_recipe(recipe).data.label_columns == ["shape"]


def test_labels_that_cannot_be_read_are_said_and_nothing_is_written(tmp_path: Path, capsys) -> None:
    table = frame(one, label=lambda x: x[0])
    table.loc[4, "label"] = None
    table.to_csv(tmp_path / "t.csv", index=False)
    found = refusal(capsys, "init", tmp_path / "t.csv", "--out", tmp_path / "r.yaml")
    assert "row 5, column 'label': the class is empty" in found
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_a_file_without_a_header_is_said(tmp_path: Path, capsys) -> None:
    frame(one, label=lambda x: x[0]).to_csv(tmp_path / "t.csv", index=False, header=False)
    assert "its first line looks like a row, not like names of columns; add a header" in refusal(
        capsys, "init", tmp_path / "t.csv", "--out", tmp_path / "r.yaml"
    )
