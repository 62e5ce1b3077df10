"""Sources of ready-made datasets: the Hugging Face hub, or files on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from llmcls.common.user_error import UserError
from llmcls.datasets.prepared import Options, Prepared, Row, all_rows, keep_top
from llmcls.datasets.reuters_sgml import read_sgml

REUTERS_TOPICS = 10


def fetch(name: str, config: str | None = None, split: str | None = None) -> Any:
    """Load a dataset from the hub. This is the only function of this module that needs a network.

    Parameters
    ----------
    name : str
    config : str, optional
        The configuration of the dataset.
    split : str, optional
        By default, all splits.

    Returns
    -------
    datasets.DatasetDict, or datasets.Dataset for one split

    Raises
    ------
    UserError
        If the dataset cannot be loaded.
    """
    try:
        return datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{name}: the dataset cannot be loaded from the hub ({reason}); check its name and the network"
        ) from error


def amazoncat(options: Options) -> Prepared:
    """AmazonCat-13k: product texts with category indices. A separate table contains the category names."""
    source = options.source or "pietrolesci/amazoncat-13k"
    table = fetch(source, "labels", "train")
    names = _name_column(table)

    def make(_: int, row: Row) -> Row:
        return {"uid": str(row["uid"]), "text": row.get("text") or f"{row['title']}\n{row['content']}"}

    splits = {}
    for split in ("train", "test"):
        rows = fetch(source, None, split)
        indices = rows.select_columns(["target_ind"])[:]["target_ind"]
        splits[split] = all_rows(rows, make, [[names[i] for i in row] for row in indices])
    top = options.top or (None if options.all_labels else 10)
    prepared = Prepared(splits, ["text"], [], suffix=f"_top{top}" if top else "_all")
    return keep_top(prepared, top, options)


def ag_news(options: Options) -> Prepared:
    """AG News: four classes of news."""
    return _classes(fetch(options.source or "fancyzhx/ag_news"), ["text"], "label", options)


def yelp(options: Options) -> Prepared:
    """Yelp reviews: one to five stars."""
    return _classes(fetch(options.source or "Yelp/yelp_review_full"), ["text"], "label", options)


def go_emotions(options: Options) -> Prepared:
    """GoEmotions: comments with any number of 28 emotions."""
    return _classes(
        fetch(options.source or "google-research-datasets/go_emotions", "simplified"), ["text"], "labels", options
    )


def hub(options: Options) -> Prepared:
    """Any dataset of the hub, with the text and label columns of the options.

    Raises
    ------
    UserError
        If an option is missing, or the dataset lacks one of the columns.
    """
    if not options.source or not options.text or not options.label:
        raise UserError("hub needs --source NAME[:CONFIG], --text COLUMN... and --label COLUMN")
    name, _, config = options.source.partition(":")
    return _classes(fetch(name, config or None), options.text, options.label, options)


def reuters(options: Options) -> Prepared:
    """Reuters-21578, ModApte split: from the SGML files in ``options.source``, or from the hub.

    Raises
    ------
    UserError
        If the source contains no training or no test documents.
    """
    if options.source:
        documents = list(read_sgml(Path(options.source)))
    else:
        documents = []
        for split, rows in fetch("reuters21578", "ModApte").items():
            if split in ("train", "test"):
                for row in rows:
                    texts = {"uid": row["new_id"].strip('"'), "title": row["title"], "body": row["text"]}
                    documents.append(texts | {"labels": row["topics"], "split": split})
    splits = {}
    for split in ("train", "test"):
        of_split = [d for d in documents if d["split"] == split]
        splits[split] = all_rows(
            of_split, lambda _, d: {c: d[c] for c in ("uid", "title", "body")}, [d["labels"] for d in of_split]
        )
    if not splits["train"] or not splits["test"]:
        source = options.source or "the hub"
        raise UserError(
            f"{source} has no training or no test documents of the ModApte split; "
            "set --source to the folder of all reut2-*.sgm files"
        )
    top = options.top or (None if options.all_labels else REUTERS_TOPICS)
    return keep_top(Prepared(splits, ["title", "body"], []), top, options)


SOURCES: dict[str, Callable[[Options], Prepared]] = {
    "amazoncat-13k": amazoncat, "ag_news": ag_news, "yelp": yelp, "go_emotions": go_emotions, "reuters": reuters,
    "hub": hub,
}  # fmt: skip


def _classes(dataset: Any, text_columns: list[str], label: str, options: Options) -> Prepared:
    """A hub dataset whose label column contains a class or a list of classes, as text or as `ClassLabel` indices."""
    if "train" not in dataset:
        raise UserError(f"the dataset has no split train; it has {', '.join(dataset)}")
    table = dataset["train"]
    for column in (*text_columns, label):
        if column not in table.column_names:
            raise UserError(f"the dataset has no column {column!r}; it has {', '.join(table.column_names)}")
    kind = table.features[label]
    single = not isinstance(kind, list | datasets.List | datasets.Sequence)
    inner = kind if single else kind[0] if isinstance(kind, list) else kind.feature

    def name_of(value: Any) -> str:
        return inner.int2str(value) if isinstance(inner, datasets.ClassLabel) and value != -1 else str(value)

    splits = {}
    for split in ("train", "validation", "test"):
        if split not in dataset:
            continue
        values = dataset[split].select_columns([label])[:][label]
        label_names = [[name_of(v) for v in ([value] if single else value)] for value in values]

        def make(i: int, row: Row, split: str = split) -> Row:
            return {"uid": f"{split}-{i}", **{c: row[c] for c in text_columns}}

        rows = all_rows(dataset[split], make, label_names)
        # Datasets on the hub use -1 for rows without a known class.
        splits[split] = rows.select(np.array([value != -1 for value in values], dtype=bool)) if single else rows
    if isinstance(inner, datasets.ClassLabel):
        names = list(inner.names)
    else:
        names = sorted({name for row in splits["train"].labels for name in row})
    prepared = Prepared(splits, text_columns, names, single)
    return keep_top(prepared, options.top, options) if options.top else prepared


def _name_column(table: Any) -> list[str]:
    """Label names by index, from a table with a text column and optionally a column of indices."""
    texts = [c for c in table.column_names if isinstance(table[0][c], str)]
    if not texts:
        raise UserError(f"the table of labels has no text column; it has {', '.join(table.column_names)}")
    names = list(table[texts[0]])
    for column in table.column_names:
        values = table[column]
        if isinstance(values[0], int) and sorted(values) == list(range(len(names))):
            return [name for _, name in sorted(zip(values, names, strict=True))]
    return names
