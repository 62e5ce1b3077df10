"""A prepared dataset: rows by split, written as the CSV files that recipes read."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from llmcls.common.files import replacing, write_json

Row = dict[str, Any]


@dataclass
class Options:
    """What the user asked for. top: labels to keep; keep_unlabelled: rows without any of them too."""

    out: Path
    top: int | None = None
    keep_unlabelled: bool = False
    validation: float = 0.1
    seed: int = 0
    limit: int | None = None
    source: str | None = None
    text: list[str] = field(default_factory=list)
    label: str | None = None


@dataclass
class Rows:
    """Some rows of a table, made when they are asked for: a million texts stay on disk.

    make: from a row of the table to "uid" and the text columns. labels: the names of each row of the table.
    """

    table: Any
    make: Callable[[int, Row], Row]
    labels: list[list[str]]
    chosen: np.ndarray

    def __len__(self) -> int:
        return len(self.chosen)

    def __iter__(self) -> Iterator[tuple[Row, list[str]]]:
        for i in self.chosen.tolist():
            yield self.make(i, self.table[i]), self.labels[i]

    def select(self, keep: np.ndarray) -> Rows:
        """The rows at these places among the chosen ones: numbers, or a mask."""
        return replace(self, chosen=self.chosen[keep])


def all_rows(table: Any, make: Callable[[int, Row], Row], labels: list[list[str]]) -> Rows:
    """Every row of a table."""
    return Rows(table, make, labels, np.arange(len(labels)))


@dataclass
class Prepared:
    """Rows by split, and the labels in order.

    single: one class a text, written as a column "label"; else an indicator column a label.
    """

    splits: dict[str, Rows]
    text_columns: list[str]
    names: list[str]
    single: bool = False
    suffix: str = ""


def write(prepared: Prepared, options: Options) -> list[str]:
    """Write the CSV files and the mapping; returns what was done, a line each."""
    splits, columns = prepared.splits, column_names(prepared.names)
    rng = np.random.default_rng(options.seed)
    if "validation" not in splits:
        rows = splits["train"]
        held = np.zeros(len(rows), dtype=bool)
        held[rng.permutation(len(rows))[: max(1, round(options.validation * len(rows)))]] = True
        splits["validation"], splits["train"] = rows.select(held), rows.select(~held)
    lines = []
    for split in ("train", "validation", "test"):
        if split not in splits:
            continue
        rows = splits[split]
        if options.limit and len(rows) > options.limit:
            rows = rows.select(np.sort(rng.choice(len(rows), options.limit, replace=False)))
        splits[split] = rows
        path = options.out / f"{split}{prepared.suffix}.csv"
        _write_csv(path, rows, prepared, columns)
        lines.append(f"{path}: {len(rows)} rows")
    kept = splits["train"]
    counts = Counter(name for i in kept.chosen for name in kept.labels[i])
    mapping = [{"name": n, "column": columns[n], "train_rows": counts[n]} for n in prepared.names]
    write_json(options.out / "label_mapping.json", {"single_label": prepared.single, "labels": mapping})
    shown = "label" if prepared.single else ", ".join(columns[n] for n in prepared.names)
    return [*lines, f"label_columns: [{shown}]"]


def column_names(names: Iterable[str]) -> dict[str, str]:
    """A column name for each label: lower case, letters, digits and underscores, each once."""
    result: dict[str, str] = {}
    for name in names:
        base = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "label"
        column, number = base, 2
        while column in result.values():
            column, number = f"{base}_{number}", number + 1
        result[name] = column
    return result


def keep_top(prepared: Prepared, top: int, options: Options) -> Prepared:
    """Keep the labels most frequent in training, in that order, and the rows that have one (all, if asked)."""
    train = prepared.splits["train"]
    counts = Counter(name for i in train.chosen for name in set(train.labels[i]))
    # Equal counts in the order of their names, so that the same data gives the same columns.
    prepared.names = [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:top]]
    wanted = set(prepared.names)
    for split, rows in prepared.splits.items():
        rows.labels = [[name for name in names if name in wanted] for names in rows.labels]
        if not options.keep_unlabelled:
            prepared.splits[split] = rows.select(np.array([bool(rows.labels[i]) for i in rows.chosen], dtype=bool))
    return prepared


def _write_csv(path: Path, rows: Rows, prepared: Prepared, columns: dict[str, str]) -> None:
    labels = ["label"] if prepared.single else [columns[n] for n in prepared.names]
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uid", *prepared.text_columns, *labels])
        for row, names in rows:
            cells = [names[0]] if prepared.single else [int(name in names) for name in prepared.names]
            writer.writerow([row["uid"], *(row[c] for c in prepared.text_columns), *cells])
