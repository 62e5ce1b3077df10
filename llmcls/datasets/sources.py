"""Where ready-made datasets come from: the hub, or files on disk."""

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
    """A hub dataset, or a split of it. The only function here that needs a network.

    Raises
    ------
    UserError: it cannot be had.
    """
    try:
        return datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{name}: the hub did not give this dataset ({reason}); check name and network") from error


def amazoncat(options: Options) -> Prepared:
    """AmazonCat-13k: product texts with their categories as numbers, and a table of the categories' names."""
    source = options.source or "pietrolesci/amazoncat-13k"
    table = fetch(source, "labels", "train")
    names = _name_column(table)

    def make(_: int, row: Row) -> Row:
        return {"uid": str(row["uid"]), "text": row.get("text") or f"{row['title']}\n{row['content']}"}

    splits = {}
    for split in ("train", "test"):
        found = fetch(source, None, split)
        numbers = found.select_columns(["target_ind"])[:]["target_ind"]
        splits[split] = all_rows(found, make, [[names[i] for i in row] for row in numbers])
    top = options.top or 10
    prepared = Prepared(splits, ["text"], [], suffix=f"_top{top}")
    return keep_top(prepared, top, options)


def ag_news(options: Options) -> Prepared:
    """AG News: four classes of news."""
    return _classes(fetch(options.source or "fancyzhx/ag_news"), ["text"], "label", options)


def yelp(options: Options) -> Prepared:
    """Yelp reviews, one to five stars."""
    return _classes(fetch(options.source or "Yelp/yelp_review_full"), ["text"], "label", options)


def go_emotions(options: Options) -> Prepared:
    """GoEmotions: comments with any of 28 emotions."""
    return _classes(
        fetch(options.source or "google-research-datasets/go_emotions", "simplified"), ["text"], "labels", options
    )


def hub(options: Options) -> Prepared:
    """Any hub dataset, by column names."""
    if not options.source or not options.text or not options.label:
        raise UserError("hub needs --source NAME[:CONFIG], --text COLUMN... and --label COLUMN")
    name, _, config = options.source.partition(":")
    return _classes(fetch(name, config or None), options.text, options.label, options)


def reuters(options: Options) -> Prepared:
    """Reuters-21578, ModApte split, from its SGML files; or, without --source, from the hub's copy."""
    if options.source:
        documents = list(read_sgml(Path(options.source)))
    else:
        documents = []
        for split, rows in fetch("reuters21578", "ModApte").items():
            if split in ("train", "test"):
                for row in rows:
                    named = {"uid": row["new_id"].strip('"'), "title": row["title"], "body": row["text"]}
                    documents.append(named | {"labels": row["topics"], "split": split})
    splits = {}
    for split in ("train", "test"):
        chosen = [d for d in documents if d["split"] == split]
        splits[split] = all_rows(
            chosen, lambda _, d: {c: d[c] for c in ("uid", "title", "body")}, [d["labels"] for d in chosen]
        )
    if not splits["train"] or not splits["test"]:
        raise UserError(f"{options.source}: no document of the ModApte split; name the folder of reut2-000.sgm ...")
    return keep_top(Prepared(splits, ["title", "body"], []), options.top or REUTERS_TOPICS, options)


SOURCES: dict[str, Callable[[Options], Prepared]] = {
    "amazoncat-13k": amazoncat, "ag_news": ag_news, "yelp": yelp, "go_emotions": go_emotions, "reuters": reuters,
    "hub": hub,
}  # fmt: skip


def _classes(found: Any, text_columns: list[str], label: str, options: Options) -> Prepared:
    """A dataset whose label column holds a class, or a list of classes, as numbers of a ClassLabel or as text."""
    table = found["train"]
    for column in (*text_columns, label):
        if column not in table.column_names:
            raise UserError(f"the dataset has no column {column!r}; it has {', '.join(table.column_names)}")
    kind = table.features[label]
    single = not isinstance(kind, list | datasets.List | datasets.Sequence)
    inner = kind if single else kind[0] if isinstance(kind, list) else kind.feature

    def named(value: Any) -> str:
        return inner.int2str(value) if isinstance(inner, datasets.ClassLabel) and value != -1 else str(value)

    splits = {}
    for split in ("train", "validation", "test"):
        if split not in found:
            continue
        values = found[split].select_columns([label])[:][label]
        names_of = [[named(v) for v in ([value] if single else value)] for value in values]

        def make(i: int, row: Row, split: str = split) -> Row:
            return {"uid": f"{split}-{i}", **{c: row[c] for c in text_columns}}

        rows = all_rows(found[split], make, names_of)
        # A class that is not known is -1 on the hub.
        splits[split] = rows.select(np.array([value != -1 for value in values], dtype=bool)) if single else rows
    if isinstance(inner, datasets.ClassLabel):
        names = list(inner.names)
    else:
        names = sorted({name for row in splits["train"].labels for name in row})
    prepared = Prepared(splits, text_columns, names, single)
    return keep_top(prepared, options.top, options) if options.top else prepared


def _name_column(table: Any) -> list[str]:
    """Label names by number, from a table with a text column and maybe one of numbers."""
    texts = [c for c in table.column_names if isinstance(table[0][c], str)]
    if not texts:
        raise UserError(f"the table of labels has no text column; it has {', '.join(table.column_names)}")
    names = list(table[texts[0]])
    for column in table.column_names:
        values = table[column]
        if isinstance(values[0], int) and sorted(values) == list(range(len(names))):
            return [name for _, name in sorted(zip(values, names, strict=True))]
    return names
