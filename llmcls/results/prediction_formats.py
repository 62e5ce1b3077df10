"""Predictions in the formats that other programs read: JSON lines as they are, CSV, and Parquet."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llmcls.common.files import replacing
from llmcls.data.labels import LabelSpace

FORMATS = ("jsonl", "csv", "parquet")
# Rows that are converted at once.
_CHUNK = 4096
# The first of these that no label contains separates the labels of a cell.
_SEPARATORS = ("|", ";", "/", "\t")


def format_of(output: str | Path, given: str | None = None) -> str:
    """The format of an output: the given one, or that of its extension; other extensions are JSON lines.

    Examples
    --------
    >>> format_of("p.csv"), format_of("p.Parquet"), format_of("p.jsonl"), format_of("p.out"), format_of("p", "csv")
    ('csv', 'parquet', 'jsonl', 'jsonl', 'csv')
    """
    kind = Path(output).suffix.lower().removeprefix(".")
    return given or (kind if kind in FORMATS else "jsonl")


def write_lines(lines: Iterable[str], output: Path, labels: LabelSpace, kind: str) -> None:
    """Write lines of predictions as a file that appears when it is complete. Memory stays bounded.

    Parameters
    ----------
    lines : iterable of str
        As `llmcls.results.predictions.prediction_lines` makes them.
    output : Path
    labels : LabelSpace
    kind : str
        One of `FORMATS`. A CSV file has the columns "id", "labels", "true" if the labels are known, and
        "probability_<label>" for each label; several labels of a cell are separated by ``|``. In Parquet they are
        lists. With many labels there is one column "probabilities" with those of the most probable labels: a JSON
        object in a CSV file, a map in Parquet.
    """
    with replacing(output) as temporary:
        if kind == "csv":
            _write_csv(lines, temporary, labels)
        elif kind == "parquet":
            _write_parquet(lines, temporary, labels)
        else:
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(lines)


def _write_csv(lines: Iterable[str], path: Path, labels: LabelSpace) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        for number, row in enumerate(map(json.loads, lines)):
            if number == 0:
                each = ["probabilities"] if labels.many else [f"probability_{name}" for name in labels.names]
                writer.writerow([*_columns(row), *each])
            cells = [row["id"], *(joined(row[column], labels) for column in _columns(row)[1:])]
            found = row["probabilities"]
            if labels.many:
                writer.writerow([*cells, json.dumps(found, ensure_ascii=False)])
            else:
                writer.writerow([*cells, *(found[name] for name in labels.names)])


def _write_parquet(lines: Iterable[str], path: Path, labels: LabelSpace) -> None:
    writer = None
    try:
        for rows in _chunks(lines):
            columns: dict[str, Any] = {"id": pa.array([row["id"] for row in rows], pa.string())}
            for column in _columns(rows[0])[1:]:
                columns[column] = pa.array([row[column] for row in rows], pa.list_(pa.string()))
            if labels.many:
                pairs = [list(row["probabilities"].items()) for row in rows]
                columns["probabilities"] = pa.array(pairs, pa.map_(pa.string(), pa.float64()))
            for name in [] if labels.many else labels.names:
                columns[f"probability_{name}"] = pa.array([row["probabilities"][name] for row in rows], pa.float64())
            table = pa.table(columns)
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def _chunks(lines: Iterable[str]) -> Iterator[list[dict[str, Any]]]:
    rows = map(json.loads, lines)
    while chunk := list(itertools.islice(rows, _CHUNK)):
        yield chunk


def _columns(row: dict[str, Any]) -> list[str]:
    """The columns before the probabilities."""
    return ["id", "labels", *(name for name in ("unsure", "set", "true") if name in row)]


def joined(names: list[str], labels: LabelSpace) -> str:
    """The labels of a row in one cell, separated by what no label contains."""
    if not labels.multi_label and len(names) < 2:
        # None, if the row is undecided.
        return "".join(names)
    separator = next((s for s in _SEPARATORS if not any(s in name for name in labels.names)), None)
    return json.dumps(names, ensure_ascii=False) if separator is None else separator.join(names)
