"""Data: a table file and a recipe in; token ids and labels, tokenized once and cached, out.

Tables are read through `datasets`, so they live memory-mapped on disk and not in the process. Every cell
of a CSV is read as text: ids keep their leading zeros, and a text "NA" stays a text.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmcls import UserMistake
from llmcls.recipe import DataSection, Recipe, text_columns_of

log = logging.getLogger(__name__)

# Bump when the meaning of a tokenized row changes, so that old cache files are not taken for new ones.
_CACHE_VERSION = 1
_TRUTH = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "False": 0.0, "True": 1.0, "false": 0.0, "true": 1.0}


@dataclass
class LabelSpace:
    """The labels of a recipe: one output of the head each.

    names: label names, in the order of the head's outputs.
    columns: the columns of the table they are read from.
    problem_type: as in the recipe.
    class_values: for single-label and binary, the cell value of each class; None for multi-label.
    """

    names: list[str]
    columns: list[str]
    problem_type: str
    class_values: list[str] | None = None


@dataclass
class Split:
    """One tokenized table.

    tokens: reads row i as int32 [length] without copying the table into memory.
    lengths: int32 [rows], tokens per row, at least 1.
    labels: float32 [rows, labels] (multi-label), int64 [rows] (else), or None where the file has none.
    table: the id column (as text) by row; memory-mapped.
    """

    name: str
    path: str
    tokens: TokenStore
    lengths: np.ndarray
    labels: np.ndarray | None
    table: datasets.Dataset

    def __len__(self) -> int:
        return len(self.lengths)

    def ids(self, start: int = 0, stop: int | None = None) -> list[str]:
        """The ids of rows ``start`` to ``stop``, as text."""
        return self.table[start : len(self) if stop is None else stop]["id"]


class TokenStore:
    """Random access to a memory-mapped list column as numpy views, without building Python lists."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        chunks = [c for c in column.chunks if len(c)]
        self._values = [c.values.to_numpy(zero_copy_only=True) for c in chunks]
        self._offsets = [c.offsets.to_numpy(zero_copy_only=True) for c in chunks]
        self._starts = np.cumsum([0] + [len(c) for c in chunks])

    def lengths(self) -> np.ndarray:
        """int32 [rows]"""
        return np.concatenate([np.diff(o) for o in self._offsets]).astype(np.int32)

    def __getitem__(self, row: int) -> np.ndarray:
        chunk = int(np.searchsorted(self._starts, row, side="right")) - 1
        offsets, i = self._offsets[chunk], row - self._starts[chunk]
        return self._values[chunk][offsets[i] : offsets[i + 1]]


def read_table(path: str | Path, key: str = "data") -> datasets.Dataset:
    """Read a CSV, TSV, JSONL or Parquet file, chosen by its extension, memory-mapped.

    Raises
    ------
    UserMistake: no such file, an extension that is not known, a file that cannot be parsed, no rows.
    """
    path = Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        hint = f"; {path.parent} has {near[0]}" if near else ""
        raise UserMistake(f"{key}: {path} is not there{hint}; check the path (it is relative to where you are)")
    kind = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
    builder = kind.get(path.suffix.lower())
    if builder is None:
        raise UserMistake(f"{key}: {path} has the extension {path.suffix!r}; use one of {', '.join(kind)}")
    options: dict[str, Any] = {}
    if builder == "csv":
        separator = "\t" if path.suffix.lower() == ".tsv" else ","
        columns = _csv_header(path, separator, key)
        options = {
            "sep": separator,
            "encoding": "utf-8-sig",
            "keep_default_na": False,
            "na_filter": False,
            "features": datasets.Features({c: datasets.Value("string") for c in columns}),
        }
    if builder == "csv":
        _check_csv_widths(path, separator, len(columns), key)
    try:
        table = datasets.load_dataset(builder, data_files=str(path), split="train", **options)
    except Exception as error:
        cause = error.__cause__ or error
        raise UserMistake(f"{key}: {path} cannot be read as {path.suffix[1:]}: {_one_line(cause)}") from error
    if len(table) == 0:
        raise _no_rows(path, key)
    return table


def _no_rows(path: Path, key: str) -> UserMistake:
    return UserMistake(f"{key}: {path} has no rows; give it at least one row below the header")


def _csv_header(path: Path, separator: str, key: str) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = next(csv.reader(file, delimiter=separator), None)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, key, error) from None
    if not header:
        raise UserMistake(f"{key}: {path} is empty; its first line must name the columns")
    doubled = sorted({c for c in header if header.count(c) > 1})
    if doubled:
        raise UserMistake(f"{key}: {path} has the column {doubled[0]!r} twice; rename one")
    return header


def _check_csv_widths(path: Path, separator: str, width: int, key: str) -> None:
    """Stop at the first row with more or fewer cells than the header, and when there is no row.

    pandas fills short rows with nothing and drops a long row's tail under some settings; either would
    shift a label silently, so the file is walked once here.
    """
    csv.field_size_limit(2**31 - 1)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=separator)
            number = 0
            for number, cells in enumerate(reader):
                if len(cells) != width and cells:
                    raise UserMistake(
                        f"{key}: {path}, row {number} (line {reader.line_num}) has {len(cells)} cells, "
                        f"the header has {width}; quote texts that hold separators or line ends"
                    )
            if number == 0:
                raise _no_rows(path, key)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, key, error) from None
    except csv.Error as error:
        raise UserMistake(f"{key}: {path}, line {reader.line_num}: {error}; repair that line") from None


def _not_utf8(path: Path, key: str, error: UnicodeDecodeError) -> UserMistake:
    return UserMistake(f"{key}: {path} is not UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8")


def label_space(recipe: Recipe, train: datasets.Dataset) -> LabelSpace:
    """Names of the head's outputs, read from the recipe and, for classes, from the training file."""
    columns, kind = recipe.data.label_columns, recipe.model.problem_type
    if kind == "multi_label_classification":
        return LabelSpace(list(columns), list(columns), kind)
    path, column = recipe.data.train_csv, columns[0]
    require_columns(train, [column], path, "data.label_columns")
    values = sorted({_cell_text(v) for v in train.unique(column)})
    if "" in values:
        row = [_cell_text(v) for v in train[column]].index("") + 1
        raise UserMistake(f"{path}, row {row}, column {column!r}: the class is empty; fill it in or drop the row")
    if len(values) < 2:
        raise UserMistake(f"{path}, column {column!r}: every row has the class {values[0]!r}; at least two are needed")
    if kind == "single_label_classification":
        return LabelSpace(values, [column], kind, values)
    if set(values) <= set(_TRUTH):
        return LabelSpace([f"not_{column}", column], [column], kind, None)
    if len(values) > 2:
        raise UserMistake(
            f"{path}, column {column!r} has {len(values)} values ({', '.join(values[:5])}, ...); "
            "binary_classification needs two; set model.problem_type=single_label_classification"
        )
    return LabelSpace(values, [column], kind, values)


def require_columns(table: datasets.Dataset, columns: list[str], path: str, key: str) -> None:
    """Raise a `UserMistake` naming the first of ``columns`` that the table lacks, and the nearest it has."""
    for column in columns:
        if column not in table.column_names:
            near = difflib.get_close_matches(column, table.column_names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(table.column_names[:30])}"
            raise UserMistake(f"{path} has no column {column!r} ({key}); {hint}")


def tokenize_split(
    table: datasets.Dataset, name: str, path: str, recipe: Recipe, tokenizer: Any, labels: LabelSpace | None
) -> Split:
    """Tokenize a table, check ids and labels, and open the cached result.

    Parameters
    ----------
    labels: None reads no labels (prediction on unlabelled input).

    Raises
    ------
    UserMistake: a missing column, a doubled id, a label cell that is not 0/1 or not a known class; each
        with file, row (1 is the first row below the header) and column.
    """
    data = recipe.data
    text_columns = text_columns_of(data)
    require_columns(table, text_columns, path, "data.text_fields" if data.text_fields else "data.target_text_column")
    if data.id_column:
        require_columns(table, [data.id_column], path, "data.id_column")
        _refuse_doubled_ids(table, data.id_column, path)
    if labels is not None:
        require_columns(table, labels.columns, path, "data.label_columns")

    def encode(batch: dict[str, list[Any]], rows: list[int]) -> dict[str, list[Any]]:
        texts = join_text_fields([batch[c] for c in text_columns], data.text_separator)
        input_ids = encode_texts(texts, tokenizer, data.max_length)
        ids = [_cell_text(v) for v in batch[data.id_column]] if data.id_column else [str(r) for r in rows]
        encoded = {"id": ids, "input_ids": input_ids}
        if labels is not None:
            encoded["labels"] = _read_labels(batch, rows, labels, path)
        return encoded

    label_feature: Any = datasets.List(datasets.Value("float32"), length=len(labels.names)) if labels else None
    if labels and labels.problem_type != "multi_label_classification":
        label_feature = datasets.Value("int64")
    features = {"id": datasets.Value("string"), "input_ids": datasets.List(datasets.Value("int32"))}
    encoded = table.map(
        encode,
        batched=True,
        with_indices=True,
        remove_columns=table.column_names,
        features=datasets.Features(features | ({"labels": label_feature} if labels else {})),
        # A tokenizer changes its own state when used, so its pickle is no stable fingerprint: name what counts.
        new_fingerprint=_fingerprint(table, data, tokenizer, labels),
        desc=f"tokenizing {name}",
    )
    store = TokenStore(encoded.data.column("input_ids"))
    values = None
    if labels is not None:
        column = encoded.data.column("labels").combine_chunks()
        flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
        values = flat.to_numpy(zero_copy_only=False)
        if labels.problem_type == "multi_label_classification":
            values = values.reshape(len(encoded), len(labels.names))
    return Split(name, path, store, store.lengths(), values, encoded.select_columns("id"))


def join_text_fields(columns: list[list[Any]], separator: str) -> list[str]:
    """One text per row: the fields that are not empty, joined."""
    cleaned = [[_cell_text(cell).strip() for cell in column] for column in columns]
    return [separator.join(cell for cell in row if cell) for row in zip(*cleaned, strict=True)]


def encode_texts(texts: list[str], tokenizer: Any, max_length: int) -> list[list[int]]:
    """Token ids of each text, cut to ``max_length``; never empty, since a text must have a last token."""
    encoded = tokenizer(texts, truncation=True, max_length=max_length, return_attention_mask=False)["input_ids"]
    stand_in = next(
        t for t in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) if t is not None
    )
    return [ids if ids else [stand_in] for ids in encoded]


def warn_about_split(split: Split, labels: LabelSpace, max_length: int) -> None:
    """Log what is allowed but rarely meant: labels without a positive, truncated texts."""
    rows = len(split)
    cut = int((split.lengths >= max_length).sum())
    log.info(
        "%s: %s, %d rows, %.0f tokens on average, %.1f %% cut at max_length %d",
        split.name, split.path, rows, split.lengths.mean(), 100 * cut / rows, max_length,
    )  # fmt: skip
    if split.name != "train" or split.labels is None:
        return
    if labels.problem_type == "multi_label_classification":
        positives = split.labels.sum(0)
    else:
        positives = np.bincount(split.labels, minlength=len(labels.names))
    for name, count in zip(labels.names, positives, strict=True):
        if count == 0:
            log.warning("%s: label %r has no positive row, so it cannot be learned", split.path, name)


def _cell_text(value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    return value if isinstance(value, str) else str(value)


def _refuse_doubled_ids(table: datasets.Dataset, column: str, path: str) -> None:
    values = table.data.column(column)
    counts = pc.value_counts(values)
    doubled = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(doubled) == 0:
        return
    value = doubled.field("values")[0]
    rows = pc.indices_nonzero(pc.equal(values, value)).to_pylist()[:2]
    raise UserMistake(
        f"{path}, column {column!r}: id {value.as_py()!r} stands in rows {rows[0] + 1} and {rows[1] + 1} "
        f"({len(doubled)} such ids); ids must be unique, or set data.id_column=null to number the rows"
    )


def _read_labels(batch: dict[str, list[Any]], rows: list[int], labels: LabelSpace, path: str) -> list[Any]:
    """float rows of 0/1 for multi-label, class indices else."""
    if labels.class_values is None:
        known, allowed = _TRUTH, "0 or 1"
    else:
        known = {value: i for i, value in enumerate(labels.class_values)}
        allowed = "a class of the training file: " + ", ".join(labels.class_values[:20])
    columns = []
    for column in labels.columns:
        values = []
        for row, cell in zip(rows, batch[column], strict=True):
            value = known.get(_cell_text(cell).strip())
            if value is None:
                raise UserMistake(f"{path}, row {row + 1}, column {column!r}: {_cell_text(cell)!r} is not {allowed}")
            values.append(value)
        columns.append(values)
    if labels.problem_type == "multi_label_classification":
        return [list(row) for row in zip(*columns, strict=True)]
    return [int(v) for v in columns[0]]


def _fingerprint(table: datasets.Dataset, data: DataSection, tokenizer: Any, labels: LabelSpace | None) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    else:
        # Truncation and padding are state left by the last call, not part of what the tokenizer is.
        state = json.loads(backend.to_str())
        rules = json.dumps({k: v for k, v in state.items() if k not in ("truncation", "padding")})
    parts = [
        _CACHE_VERSION, table._fingerprint, data.id_column, text_columns_of(data), data.text_separator,
        data.max_length, rules, None if labels is None else [labels.columns, labels.class_values, labels.problem_type],
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
