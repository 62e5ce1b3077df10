"""Tokenized splits: token ids and labels of a table, tokenized once, cached on disk and memory-mapped."""

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
from llmcls.data.marks import Values, from_offsets
from llmcls.data.soft_labels import harden, read_soft_labels
from llmcls.data.tables import cell_text, column_texts, require_columns
from llmcls.recipe.schema import DataSection, Recipe

log = logging.getLogger(__name__)


# Increase this number when the contents of a tokenized row change, so that old cache files are not used.
_CACHE_VERSION = 3


@dataclass
class Split:
    """A tokenized table.

    Attributes
    ----------
    name : str
        "train", "validation", "test", or "input" for prediction.
    path : str
        The file.
    tokens : TokenStore or sequence of int32 [length]
        The token ids of each row. A `TokenStore` reads them without copying the table into memory.
    lengths : int32 [rows]
        Tokens per row, at least 1.
    labels : float32 [rows, labels] or int64 [rows], optional
        Multi-label: 0/1 marks, sparse with many labels (see `llmcls.data.marks`). Otherwise: class indices. None if
        the file has no labels.
    table : datasets.Dataset
        The column "id" as text, memory-mapped.
    window : int, optional
        Tokens per window, if the tokens of a row are consecutive windows of a text. None if they are one text.
    digests : int64 [rows], optional
        The `text_digest` of each row.
    numbers : int64 [rows], optional
        The number of each row in the file, from 1. None if the split is the whole file.
    soft : float32 [rows, labels], optional
        The probabilities that training aims at, with ``data.soft_labels``. ``labels`` are what they stand for.
    """

    name: str
    path: str
    tokens: TokenStore | SelectedTokens | Sequence[np.ndarray]
    lengths: np.ndarray
    labels: Values | None
    table: datasets.Dataset
    window: int | None = None
    digests: np.ndarray | None = None
    numbers: np.ndarray | None = None
    soft: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def known_labels(self) -> Values:
        """The label values of a split that has labels.

        Raises
        ------
        ValueError
            If it has none.
        """
        if self.labels is None:
            raise ValueError(f"{self.path} was read without labels")
        return self.labels

    @property
    def known_digests(self) -> np.ndarray:
        """The digests of a split that was read from a table.

        Raises
        ------
        ValueError
            If it was not.
        """
        if self.digests is None:
            raise ValueError(f"{self.path} has no digests of its texts")
        return self.digests

    def ids(self, start: int = 0, stop: int | None = None) -> list[str]:
        """The ids of the rows from ``start`` up to, but not including, ``stop``."""
        return self.table[start : len(self) if stop is None else stop]["id"]


class TokenStore:
    """Random access to a memory-mapped list column as numpy views, without Python lists.

    Parameters
    ----------
    column : pa.ChunkedArray
        A column of lists of int32.
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        chunks = [c for c in column.chunks if len(c)]
        self._values = [c.values.to_numpy(zero_copy_only=True) for c in chunks]
        self._offsets = [c.offsets.to_numpy(zero_copy_only=True) for c in chunks]
        self._starts = np.cumsum([0] + [len(c) for c in chunks])

    def lengths(self) -> np.ndarray:
        """Tokens per row, int32 [rows]."""
        return np.concatenate([np.diff(o) for o in self._offsets]).astype(np.int32)

    def __getitem__(self, row: int) -> np.ndarray:
        chunk = int(np.searchsorted(self._starts, row, side="right")) - 1
        offsets, i = self._offsets[chunk], row - self._starts[chunk]
        return self._values[chunk][offsets[i] : offsets[i + 1]]


class SelectedTokens:
    """The tokens of some rows, without a list of them.

    Parameters
    ----------
    tokens : TokenStore or sequence
        Of all rows.
    rows : int64 [selected rows]
    """

    def __init__(self, tokens: TokenStore | SelectedTokens | Sequence[np.ndarray], rows: np.ndarray) -> None:
        self._tokens, self._rows = tokens, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> np.ndarray:
        return self._tokens[int(self._rows[row])]


def tokenize_split(
    table: datasets.Dataset, name: str, path: str, recipe: Recipe, tokenizer: Any, labels: LabelSpace,
    labelled: bool = True,
) -> Split:  # fmt: skip
    """Tokenize a table, or open the cached result, and check its ids and labels.

    Parameters
    ----------
    table : datasets.Dataset
    name, path : str
        See `Split`.
    recipe : Recipe
    tokenizer : PreTrainedTokenizerBase
    labels : LabelSpace
    labelled : bool
        Whether to read labels. Tables for prediction can have none.

    Returns
    -------
    Split

    Raises
    ------
    UserError
        If a column is missing, an id occurs twice, or a label cell has an unknown value. The message names the file,
        the row (1 is the first row below the header) and the column.
    """
    data = recipe.data
    text_columns = data.text_columns()
    require_columns(table, text_columns, path, "data.text_fields" if data.text_fields else "data.target_text_column")
    if data.id_column:
        require_columns(table, [data.id_column], path, "data.id_column")
        _check_unique_ids(table, data.id_column, path)
    if labelled:
        require_columns(table, labels.columns, path, "data.label_columns")

    def read_batch(batch: dict[str, list[Any]], rows: list[int]) -> dict[str, list[Any]]:
        texts = join_text_fields([batch[c] for c in text_columns], data.text_separator)
        ids = [cell_text(v) for v in batch[data.id_column]] if data.id_column else [str(r) for r in rows]
        columns: dict[str, list[Any]] = {"id": ids, "input_ids": encode(texts, tokenizer, data, labels.names)}
        columns["digest"] = [text_digest(text) for text in texts]
        if labelled and data.soft_labels:
            soft = read_soft_labels(batch, rows, labels, path)
            return columns | {"labels": harden(soft, labels).tolist(), "soft": soft.tolist()}
        return columns | {"labels": read_labels(batch, rows, labels, path)} if labelled else columns

    features = {"id": datasets.Value("string"), "input_ids": datasets.List(datasets.Value("int32"))}
    features["digest"] = datasets.Value("int64")
    if labelled:
        marks = datasets.List(datasets.Value("float32"), length=len(labels.names))
        numbers = datasets.List(datasets.Value("int32"))
        features["labels"] = (numbers if labels.many else marks) if labels.multi_label else datasets.Value("int64")
        features |= {"soft": marks} if data.soft_labels else {}
    encoded = table.map(
        read_batch,
        batched=True,
        with_indices=True,
        remove_columns=table.column_names,
        features=datasets.Features(features),
        # A tokenizer changes its state when it is used, so the fingerprint that `datasets` computes from its pickle
        # is not stable.
        new_fingerprint=_cache_key(table, data, tokenizer, labels, labelled),
        desc=f"tokenizing {name}",
    )
    store = TokenStore(encoded.data.column("input_ids"))
    values = _values(encoded, labels) if labelled else None
    soft = _array(encoded, "soft") if labelled and data.soft_labels else None
    window = data.max_length if data.truncation == "windows" else None
    digests = encoded.data.column("digest").to_numpy()
    return Split(name, path, store, store.lengths(), values, encoded.select_columns("id"), window, digests, soft=soft)


def _array(table: datasets.Dataset, name: str) -> np.ndarray:
    """A column of numbers, or of lists of the same length, as an array of one or two dimensions."""
    column = table.data.column(name).combine_chunks()
    if not pa.types.is_fixed_size_list(column.type):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), column.type.list_size))


def _values(table: datasets.Dataset, labels: LabelSpace) -> Values:
    """The label values of a tokenized table."""
    if not labels.many:
        return _array(table, "labels")
    column = table.data.column("labels").combine_chunks()
    offsets = column.offsets.to_numpy()
    return from_offsets(offsets - offsets[0], column.flatten().to_numpy(), len(labels.names))


def text_digest(text: str) -> int:
    """A number that texts share if they differ only in case and white space; 0 for empty ones.

    Examples
    --------
    >>> text_digest("A  text\\n") == text_digest("a text"), text_digest(" ")
    (True, 0)
    """
    plain = " ".join(text.lower().split())
    if not plain:
        return 0
    # surrogatepass: what is no character fails in the tokenizer, with its own message.
    return (
        int.from_bytes(hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=8).digest(), signed=True)
        or 1
    )


def numbers_of(split: Split, rows: np.ndarray) -> np.ndarray:
    """The numbers in the file, from 1, of some rows of a split."""
    return rows + 1 if split.numbers is None else split.numbers[rows]


def some_rows(split: Split, rows: int, seed: int) -> Split:
    """At most ``rows`` rows of a split with labels, drawn with the seed, in their order. The ids are those of all."""
    if rows >= len(split):
        return split
    chosen = np.sort(np.random.default_rng(seed).choice(len(split), rows, replace=False))
    return dataclasses.replace(
        split,
        tokens=[split.tokens[row] for row in chosen],
        lengths=split.lengths[chosen],
        labels=split.known_labels[chosen],
        digests=None if split.digests is None else split.digests[chosen],
        numbers=numbers_of(split, chosen),
        soft=None if split.soft is None else split.soft[chosen],
    )


def warn_about_split(split: Split, labels: LabelSpace, max_length: int) -> None:
    """Log the size of a split and the share of truncated texts, and warn about labels without a positive row.

    Parameters
    ----------
    split : Split
    labels : LabelSpace
    max_length : int
        The recipe's ``data.max_length``.
    """
    rows = len(split)
    full = int((split.lengths >= max_length).sum())
    log.info(
        "%s: %s, %d rows, %.0f tokens on average, %.1f %% %s %d",
        split.name, split.path, rows, split.lengths.mean(), 100 * full / rows,
        "cut at max_length" if split.window is None else "in more than one window of", max_length,
    )  # fmt: skip
    if split.name != "train" or split.labels is None:
        return
    missing = [n for n, count in zip(labels.names, count_positives(split.labels, labels), strict=True) if count == 0]
    if labels.many and missing:
        log.warning(
            "%s: %d labels have no positive row, so they cannot be learned (%r, ...)",
            split.path,
            len(missing),
            missing[0],
        )
        return
    for name in missing:
        log.warning("%s: label %r has no positive row, so it cannot be learned", split.path, name)


def _check_unique_ids(table: datasets.Dataset, column: str, path: str) -> None:
    """Raise a `UserError` if an id occurs twice."""
    values = column_texts(table, column)
    counts = pc.value_counts(values)
    duplicates = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(duplicates) == 0:
        return
    value = duplicates.field("values")[0]
    if not value.is_valid:
        rows = pc.indices_nonzero(pc.is_null(values)).to_pylist()[:2]
        raise UserError(
            f"{path}, column {column!r}: rows {rows[0] + 1} and {rows[1] + 1} have no id; fill in the ids, "
            "or set data.id_column=null to number the rows"
        )
    rows = pc.indices_nonzero(pc.equal(values, value)).to_pylist()[:2]
    raise UserError(
        f"{path}, column {column!r}: id {value.as_py()!r} occurs in rows {rows[0] + 1} and {rows[1] + 1} "
        f"(duplicate ids: {len(duplicates)}); ids must be unique, or set data.id_column=null to number the rows"
    )


def _cache_key(table: datasets.Dataset, data: DataSection, tokenizer: Any, labels: LabelSpace, labelled: bool) -> str:
    """A hash of everything that determines the tokenized rows."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    else:
        # Truncation and padding are left over from the last call and do not affect the next one.
        state = json.loads(backend.to_str())
        rules = json.dumps({k: v for k, v in state.items() if k not in ("truncation", "padding")})
    parts = [
        _CACHE_VERSION, table._fingerprint, data.id_column, data.text_columns(), data.text_separator,
        data.max_length, data.truncation, data.window_overlap, data.max_windows, data.prompt, data.label_descriptions,
        rules, dataclasses.asdict(labels), labelled, *(["sparse"] if labels.many else []),
        *(["soft"] if data.soft_labels else []),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
