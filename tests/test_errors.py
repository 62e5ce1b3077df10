from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llmcls.common.user_error import UserError
from llmcls.data.labels import LabelSpace
from llmcls.errors import main
from llmcls.evaluation.mistakes import Texts, confident_mistakes, label_errors, near_duplicates
from tests.helpers import read_rows, write_csv
from tests.test_train import train

LABELS = LabelSpace(["a", "b"], ["a", "b"], "multi_label_classification")


def test_the_surest_mistake_comes_first() -> None:
    p = np.array([[0.9, 0.2], [0.55, 0.01], [0.1, 0.1]], dtype=np.float32)
    true = np.array([[True, False], [False, True], [False, False]])
    found = confident_mistakes(["x", "y", "z"], p, true, p >= 0.5, LABELS, {"y": "text of y"})
    assert [m["id"] for m in found] == ["y"]
    assert (found[0]["label"], found[0]["said"], found[0]["text"]) == ("b", False, "text of y")


def test_flipped_labels_are_found() -> None:
    rng = np.random.default_rng(0)
    true = rng.random((300, 2)) < 0.5
    p = np.clip(np.where(true, 0.85, 0.15) + rng.normal(0, 0.08, true.shape), 0.01, 0.99)
    given, flipped = true.copy(), rng.choice(300, 6, replace=False)
    given[flipped, 0] ^= True
    found = label_errors([str(i) for i in range(300)], p, given, LABELS, {})
    first = {e["id"] for e in found[:6]}
    assert first == {str(i) for i in flipped}
    assert all(e["label"] == "a" and e["belief"] < 0.5 for e in found[:6])


def test_near_duplicates_are_paired_and_mere_likeness_is_not() -> None:
    story = "the parcel left the warehouse on a tuesday and arrived one day early in a dented box"
    train_texts = Texts(["t0", "t1"], ["something else entirely about garden rakes and rain", story])
    other = Texts(["o0", "o1", "o2"], [story.upper() + "!", "the parcel left the shop on a friday", story[:60]])
    found = near_duplicates(train_texts, other, 0.9)
    assert [(d["id"], d["train_id"]) for d in found] == [("o0", "t1")]


def test_the_command_writes_and_prints_what_it_found(
    write_recipe, products: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = read_rows(products / "test.csv")
    rows[3] = rows[3] | {k: read_rows(products / "train.csv")[5][k] for k in ("title", "description")}
    path = tmp_path / "test.csv"
    write_csv(path, rows)
    root = train(write_recipe(train__num_train_epochs=1, data__test_csv=str(path), exp__seeds=[1, 2]))
    main(["--run", str(root / "run_0"), "--top", "3"])
    out = capsys.readouterr().out
    assert "most confident first (2 seed(s))" in out
    found = json.loads((root / "run_0" / "errors_test.json").read_text(encoding="utf-8"))
    assert rows[3]["uid"] in {d["id"] for d in found["duplicates"]}
    assert found["mistakes"][0]["text"]


def test_a_run_without_predictions_is_named(write_recipe) -> None:
    run = train(write_recipe(train__num_train_epochs=1, data__val_csv=None, data__test_csv=None)) / "run_0"
    with pytest.raises(UserError, match="has no predictions of validation or test"):
        main(["--run", str(run)])
