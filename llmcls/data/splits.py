"""Data: a table and a recipe in; token ids and labels, tokenized once and cached, memory-mapped, out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmcls.common.user_error import UserError
from llmcls.data.encoding import encode, join_text_fields
from llmcls.data.labels import LabelSpace, count_positives, read_labels
from llmcls.data.tables import cell_text, require_columns
from llmcls.recipe.schema import DataSection, Recipe

log = logging.getLogger(__name__)


# Bump when the meaning of a tokenized row changes, so that old cache files are not taken for new ones.
_CACHE_VERSION = 2


@dataclass
class Split:
    """One tokenized table.

    tokens: reads row i as int32 [length] without copying the table into memory.
    lengths: int32 [rows], tokens per row, at least 1.
    labels: float32 [rows, labels] (multi-label), int64 [rows] (else), or None where the file has none.
    table: the id column (as text) by row; memory-mapped.
    window: tokens of a window, where a row's tokens are windows one after the other; None where they are one text.
    """

    name: str
    path: str
    tokens: TokenStore | Sequence[np.ndarray]
    lengths: np.ndarray
    labels: np.ndarray | None
    table: datasets.Dataset
    window: int | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def known_labels(self) -> np.ndarray:
        """The label values of a split that has labels.

        Raises
        ------
        ValueError
            If it has none.
        """
        if self.labels is None:
            raise ValueError(f"{self.path} was read without labels")
        return self.labels

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


def tokenize_split(
    table: datasets.Dataset, name: str, path: str, recipe: Recipe, tokenizer: Any, labels: LabelSpace,
    labelled: bool = True,
) -> Split:  # fmt: skip
    """Tokenize a table, check ids and labels, and open the cached result.

    Parameters
    ----------
    labelled: whether the table has labels; prediction takes tables without.

    Raises
    ------
    UserError: a missing column, a doubled id, a label cell that is not 0/1 or not a known class; each
        with file, row (1 is the first row below the header) and column.
    """
    data = recipe.data
    text_columns = data.text_columns()
    require_columns(table, text_columns, path, "data.text_fields" if data.text_fields else "data.target_text_column")
    if data.id_column:
        require_columns(table, [data.id_column], path, "data.id_column")
        _refuse_doubled_ids(table, data.id_column, path)
    if labelled:
        require_columns(table, labels.columns, path, "data.label_columns")

    def read(batch: dict[str, list[Any]], rows: list[int]) -> dict[str, list[Any]]:
        texts = join_text_fields([batch[c] for c in text_columns], data.text_separator)
        ids = [cell_text(v) for v in batch[data.id_column]] if data.id_column else [str(r) for r in rows]
        found: dict[str, list[Any]] = {"id": ids, "input_ids": encode(texts, tokenizer, data, labels.names)}
        return found | {"labels": read_labels(batch, rows, labels, path)} if labelled else found

    features = {"id": datasets.Value("string"), "input_ids": datasets.List(datasets.Value("int32"))}
    if labelled:
        several = datasets.List(datasets.Value("float32"), length=len(labels.names))
        features["labels"] = several if labels.multi_label else datasets.Value("int64")
    encoded = table.map(
        read,
        batched=True,
        with_indices=True,
        remove_columns=table.column_names,
        features=datasets.Features(features),
        # A tokenizer changes its own state when used, so its pickle is no stable fingerprint: name what counts.
        new_fingerprint=_cache_key(table, data, tokenizer, labels, labelled),
        desc=f"tokenizing {name}",
    )
    store = TokenStore(encoded.data.column("input_ids"))
    values = None
    if labelled:
        column = encoded.data.column("labels").combine_chunks()
        flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
        values = flat.to_numpy(zero_copy_only=False)
        if labels.multi_label:
            values = values.reshape(len(encoded), len(labels.names))
    window = data.max_length if data.truncation == "windows" else None
    return Split(name, path, store, store.lengths(), values, encoded.select_columns("id"), window)


def warn_about_split(split: Split, labels: LabelSpace, max_length: int) -> None:
    """Log what is allowed but rarely meant: labels without a positive, truncated texts."""
    rows = len(split)
    full = int((split.lengths >= max_length).sum())
    log.info(
        "%s: %s, %d rows, %.0f tokens on average, %.1f %% %s %d",
        split.name, split.path, rows, split.lengths.mean(), 100 * full / rows,
        "cut at max_length" if split.window is None else "in more than one window of", max_length,
    )  # fmt: skip
    if split.name != "train" or split.labels is None:
        return
    for name, count in zip(labels.names, count_positives(split.labels, labels), strict=True):
        if count == 0:
            log.warning("%s: label %r has no positive row, so it cannot be learned", split.path, name)


def _refuse_doubled_ids(table: datasets.Dataset, column: str, path: str) -> None:
    values = table.data.column(column)
    counts = pc.value_counts(values)
    doubled = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(doubled) == 0:
        return
    value = doubled.field("values")[0]
    rows = pc.indices_nonzero(pc.equal(values, value)).to_pylist()[:2]
    raise UserError(
        f"{path}, column {column!r}: id {value.as_py()!r} stands in rows {rows[0] + 1} and {rows[1] + 1} "
        f"({len(doubled)} such ids); ids must be unique, or set data.id_column=null to number the rows"
    )


def _cache_key(table: datasets.Dataset, data: DataSection, tokenizer: Any, labels: LabelSpace, labelled: bool) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    else:
        # Truncation and padding are state left by the last call, not part of what the tokenizer is.
        state = json.loads(backend.to_str())
        rules = json.dumps({k: v for k, v in state.items() if k not in ("truncation", "padding")})
    parts = [
        _CACHE_VERSION, table._fingerprint, data.id_column, data.text_columns(), data.text_separator,
        data.max_length, data.truncation, data.window_overlap, data.max_windows, data.prompt, data.label_descriptions,
        rules, dataclasses.asdict(labels), labelled,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
