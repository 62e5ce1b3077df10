from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcls.datasets.products import write_data
from llmcls.evaluation import scoring
from llmcls.label import main
from llmcls.prediction import pool, stored_rows
from llmcls.prediction.stored_rows import StoredRows
from tests.conftest import Experiment
from tests.helpers import TOPICS, fresh_accelerator, predict, read_lines, read_rows, refusal, write_csv

pytestmark = pytest.mark.slow


def label(*arguments: Any) -> None:
    """Choose in this process."""
    fresh_accelerator()
    main([str(a) for a in arguments])


@pytest.fixture
def texts(tmp_path: Path) -> list[dict[str, str]]:
    """Texts that the run has not seen, without labels."""
    write_data(tmp_path / "new", 11, {"train": 40, "validation": 1, "test": 1})
    rows = read_rows(tmp_path / "new" / "train.csv")
    return [{"uid": f"new{i}", "title": row["title"], "description": row["description"]} for i, row in enumerate(rows)]


def test_the_list_has_unsure_texts_without_a_label_as_the_run_predicts_them(
    trained_once: Experiment, products: Path, tmp_path: Path, texts: list[dict[str, str]], capsys
) -> None:
    run, path, output = trained_once.runs[0], tmp_path / "pool.csv", tmp_path / "to label" / "list.csv"
    known = read_rows(products / "validation.csv")[0]
    again = {"uid": "again", "title": texts[0]["title"].upper(), "description": texts[0]["description"]}
    seen = {"uid": "seen", "title": known["title"], "description": known["description"]}
    empty = {"uid": "empty", "title": " ", "description": ""}
    # A pool of which one text was labelled since.
    rows = [row | dict.fromkeys(TOPICS, "") for row in (*texts, again, seen, empty)]
    rows[5] |= dict.fromkeys(TOPICS, "0")
    write_csv(path, rows)
    label("--run", run, "--pool", path, "--rows", 8, "--out", output)
    said = capsys.readouterr().out
    assert "left out: 2 labelled already, 1 repeated, 1 empty\n" in said
    assert f"8 texts -> {output}; fill in books, music, movies, ..., and add the rows to " in said
    assert [p.name for p in output.parent.iterdir()] == ["list.csv"]
    listed = read_list(output)
    ids = [row["uid"] for row in listed]
    assert len(set(ids)) == 8
    assert set(ids) <= {row["uid"] for row in texts} - {texts[5]["uid"]}
    assert {row[topic] for row in listed for topic in TOPICS} == {""}
    predict("--run", run, "--input", path_without_labels(tmp_path, texts), "--output", tmp_path / "p.jsonl")
    predictions = {line["id"]: line for line in read_lines(tmp_path / "p.jsonl")}
    for row in listed:
        assert row["suggested"] == "|".join(predictions[row["uid"]]["labels"])
        given = [predictions[row["uid"]]["probabilities"][name] for name in predictions[row["uid"]]["labels"]]
        assert row["suggested_probability"] == "|".join(f"{p:.3f}" for p in given)


def test_an_interrupted_pass_resumes_and_chooses_the_same(
    trained_once: Experiment, tmp_path: Path, texts: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "NUMBERS_AT_ONCE", 70)
    for module in (scoring, stored_rows):
        monkeypatch.setattr(module, "CHUNK_ROWS", 16)
    arguments = ["--run", trained_once.runs[0], "--pool", path_without_labels(tmp_path, texts), "--rows", 5, "--out"]
    label(*arguments, tmp_path / "whole.csv")
    stored: list[int] = []
    real = StoredRows.append

    def append(stops: bool) -> Callable[[StoredRows, np.ndarray], None]:
        def counting(self: StoredRows, rows: np.ndarray) -> None:
            if stops and len(stored) == 2:
                raise KeyboardInterrupt
            stored.append(len(rows))
            real(self, rows)

        return counting

    monkeypatch.setattr(StoredRows, "append", append(stops=True))
    with pytest.raises(KeyboardInterrupt):
        label(*arguments, tmp_path / "list.csv")
    assert not (tmp_path / "list.csv").exists()
    monkeypatch.setattr(StoredRows, "append", append(stops=False))
    label(*arguments, tmp_path / "list.csv")
    assert stored == [16, 16, 8]
    assert (tmp_path / "list.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not list(tmp_path.glob("list.csv.*"))


def test_a_pool_in_which_every_text_has_a_label_is_refused(
    trained_once: Experiment, products: Path, tmp_path: Path, capsys
) -> None:
    fresh_accelerator()
    path, output = products / "test.csv", tmp_path / "list.csv"
    found = refusal(capsys, "label", "--run", trained_once.runs[0], "--pool", path, "--out", output)
    assert f"--pool: {path} has no text to label (61 labelled already, 0 repeated, 0 empty)" in found
    assert list(tmp_path.iterdir()) == []


def read_list(path: Path) -> list[dict[str, str]]:
    """The rows of a list, which begins with a byte order mark."""
    path.write_bytes(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    return read_rows(path)


def path_without_labels(folder: Path, texts: list[dict[str, str]]) -> Path:
    return write_csv(folder / "texts.csv", texts)
