"""Prepared datasets: the rows and labels of each split, written as the CSV files that recipes read."""

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
from llmcls.common.user_error import UserError
from llmcls.data.label_cells import SEPARATORS

Row = dict[str, Any]


@dataclass
class Options:
    """The options of `llmcls.prepare`.

    Attributes
    ----------
    out : Path
        Output folder.
    top : int, optional
        Number of labels to keep, the most frequent ones.
    keep_unlabelled : bool
        Whether to keep rows that have none of these labels.
    validation : float
        Share of the training rows that become the validation split, if the dataset has none.
    seed : int
        Seed of all random draws.
    limit : int, optional
        Maximum number of rows per split.
    source : str, optional
        Another dataset name or folder than the default.
    text : list of str
        Text columns of a hub dataset.
    label : str, optional
        Label column of a hub dataset.
    all_labels : bool
        Whether one column holds all labels of a row, in place of a 0/1 column for each label.
    """

    out: Path
    top: int | None = None
    keep_unlabelled: bool = False
    validation: float = 0.1
    seed: int = 0
    limit: int | None = None
    source: str | None = None
    text: list[str] = field(default_factory=list)
    label: str | None = None
    all_labels: bool = False


@dataclass
class Rows:
    """Selected rows of a table, read only when they are iterated, so that large tables stay on disk.

    Attributes
    ----------
    table : datasets.Dataset or list of dict
    make : callable
        (index, row of the table) -> dictionary of "uid" and the text columns.
    labels : list of list of str
        Label names of each row of the table.
    chosen : int64 [rows]
        Indices of the selected rows.
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
        """Select rows again, by indices into the selected rows or by a mask over them."""
        return replace(self, chosen=self.chosen[keep])


def all_rows(table: Any, make: Callable[[int, Row], Row], labels: list[list[str]]) -> Rows:
    """Every row of a table."""
    return Rows(table, make, labels, np.arange(len(labels)))


@dataclass
class Prepared:
    """A dataset that is ready to be written.

    Attributes
    ----------
    splits : dict of Rows
        "train", and optionally "validation" and "test".
    text_columns : list of str
    names : list of str
        Label names, in the order of the columns.
    single : bool
        Whether each text has one class, written as a column "label". Otherwise, each label gets a 0/1 column.
    suffix : str
        Appended to the file names.
    """

    splits: dict[str, Rows]
    text_columns: list[str]
    names: list[str]
    single: bool = False
    suffix: str = ""


def write(prepared: Prepared, options: Options) -> list[str]:
    """Write ``<split><suffix>.csv`` for each split, and ``label_mapping.json``.

    Parameters
    ----------
    prepared : Prepared
        Its splits are changed: a validation split is taken from the training rows if it is missing, and each split is
        reduced to ``options.limit`` rows.
    options : Options

    Returns
    -------
    list of str
        Lines that describe the files, and the ``label_columns`` line of a recipe.

    Raises
    ------
    UserError
        If one column is to hold all labels, and each text has one class.
    """
    if options.all_labels and prepared.single:
        raise UserError("--all-labels is for texts with any number of labels; this data set has one class per text")
    splits = prepared.splits
    rng = np.random.default_rng(options.seed)
    if "validation" not in splits:
        rows = splits["train"]
        held_out = np.zeros(len(rows), dtype=bool)
        held_out[rng.permutation(len(rows))[: max(1, round(options.validation * len(rows)))]] = True
        splits["validation"], splits["train"] = rows.select(held_out), rows.select(~held_out)
    lines: list[str] = []
    for split in ("train", "validation", "test"):
        if split in splits and options.limit and len(splits[split]) > options.limit:
            chosen = rng.choice(len(splits[split]), options.limit, replace=False)
            splits[split] = splits[split].select(np.sort(chosen))
    train_rows = splits["train"]
    counts = Counter(name for i in train_rows.chosen for name in train_rows.labels[i])
    separator = None
    if options.all_labels:
        # A label without a training row cannot be learned, and a recipe would refuse it in the other files.
        prepared.names = [name for name in prepared.names if counts[name]]
        separator = next(s for s in SEPARATORS if not any(s in name for name in prepared.names))
        columns = dict.fromkeys(prepared.names, "labels")
    else:
        columns = column_names(prepared.names)
    for split in ("train", "validation", "test"):
        if split in splits:
            path = options.out / f"{split}{prepared.suffix}.csv"
            _write_csv(path, splits[split], prepared, columns, separator)
            lines.append(f"{path}: {len(splits[split])} rows")
    mapping = [{"name": n, "column": columns[n], "train_rows": counts[n]} for n in prepared.names]
    write_json(options.out / "label_mapping.json", {"single_label": prepared.single, "labels": mapping})
    if separator is not None:
        return [*lines, f"{len(prepared.names)} labels", "label_columns: [labels]", f'label_separator: "{separator}"']
    label_columns = "label" if prepared.single else ", ".join(columns[n] for n in prepared.names)
    return [*lines, f"label_columns: [{label_columns}]"]


def column_names(names: Iterable[str]) -> dict[str, str]:
    """A unique column name for each label, made of lower-case letters, digits and underscores.

    Examples
    --------
    >>> column_names(["Movies & TV", "movies_tv", "Sci/Tech"])
    {'Movies & TV': 'movies_tv', 'movies_tv': 'movies_tv_2', 'Sci/Tech': 'sci_tech'}
    """
    result: dict[str, str] = {}
    for name in names:
        base = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "label"
        column, number = base, 2
        while column in result.values():
            column, number = f"{base}_{number}", number + 1
        result[name] = column
    return result


def keep_top(prepared: Prepared, top: int | None, options: Options) -> Prepared:
    """Keep the most frequent labels of the training split, and the rows that have at least one of them.

    Parameters
    ----------
    prepared : Prepared
        Changed in place.
    top : int, optional
        Number of labels to keep; None for all. They are ordered by frequency.
    options : Options
        With ``keep_unlabelled``, all rows are kept.

    Returns
    -------
    Prepared
        The argument.
    """
    train_rows = prepared.splits["train"]
    counts = Counter(name for i in train_rows.chosen for name in set(train_rows.labels[i]))
    # Labels with equal counts are ordered by name, so that the same data gives the same columns.
    prepared.names = [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:top]]
    kept = set(prepared.names)
    for split, rows in prepared.splits.items():
        rows.labels = [[name for name in names if name in kept] for names in rows.labels]
        if not options.keep_unlabelled:
            prepared.splits[split] = rows.select(np.array([bool(rows.labels[i]) for i in rows.chosen], dtype=bool))
    return prepared


def _write_csv(path: Path, rows: Rows, prepared: Prepared, columns: dict[str, str], separator: str | None) -> None:
    """Write a split; with a separator, one column holds all labels."""
    labels = ["label"] if prepared.single else list(dict.fromkeys(columns[n] for n in prepared.names))
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uid", *prepared.text_columns, *labels])
        for row, names in rows:
            if separator is not None:
                cells: list[Any] = [separator.join(name for name in names if name in columns)]
            elif prepared.single:
                # A row without any of the kept labels has an empty class.
                cells = names[:1] or [""]
            else:
                cells = [int(name in names) for name in prepared.names]
            writer.writerow([row["uid"], *(row[c] for c in prepared.text_columns), *cells])
