from __future__ import annotations

import json
from pathlib import Path

from tests.helpers import TOPICS, predict, read_lines, read_rows, write_csv


def test_input_needs_no_labels_and_keeps_its_order(trained, products: Path, tmp_path: Path) -> None:
    run = trained.runs[0]
    rows = [{k: row[k] for k in ("description", "uid", "title")} for row in read_rows(products / "test.csv")][::-1]
    write_csv(tmp_path / "unlabelled.csv", rows)
    predict("--run", run, "--input", tmp_path / "unlabelled.csv", "--output", tmp_path / "p.jsonl")
    lines = read_lines(tmp_path / "p.jsonl")
    assert [line["id"] for line in lines] == [row["uid"] for row in rows]
    assert set(lines[0]) == {"id", "probabilities", "labels"}
    thresholds = json.loads((run / "thresholds.json").read_text(encoding="utf-8"))["values"]
    for line in lines:
        assert line["labels"] == [t for t in TOPICS if line["probabilities"][t] >= thresholds[t]]
    assert not (tmp_path / "p.metrics.json").exists()
