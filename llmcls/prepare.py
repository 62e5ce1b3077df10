"""Ready-made data: ``python -m llmcls.prepare NAME --out DIR`` writes CSV files that the recipes of ours read.

NAME is amazoncat-13k, ag_news, yelp, go_emotions, reuters, or hub (any hub dataset, by its columns). Each writes
train, validation and test CSVs and label_mapping.json, which keeps every label's own name, column and count. Only
`fetch` touches the network; everything else works on what it returns.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from llmcls import UserMistake, run_command
from llmcls.files import replacing, write_json
from llmcls.sgml import read_sgml

REUTERS_TOPICS = 10
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


def fetch(name: str, config: str | None = None, split: str | None = None) -> Any:
    """A hub dataset, or a split of it. The only function here that needs a network.

    Raises
    ------
    UserMistake: it cannot be had.
    """
    try:
        return datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserMistake(f"{name}: the hub did not give this dataset ({reason}); check name and network") from error


def main(argv: list[str] | None = None) -> None:
    """Prepare one dataset."""
    parser = argparse.ArgumentParser(prog="llmcls.prepare", description="Write a known dataset as CSV files.")
    parser.add_argument("name", choices=sorted(SOURCES))
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument("--top", type=int, help="keep the most frequent labels (amazoncat-13k and reuters: 10)")
    parser.add_argument("--keep-unlabelled", action="store_true", help="keep rows that have none of the kept labels")
    parser.add_argument("--validation", type=float, default=0.1, help="share of training rows, where no split is given")
    parser.add_argument("--limit", type=int, help="at most so many rows a split, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--source", help="reuters: the folder of reut2-*.sgm; hub: the dataset's name[:config]")
    parser.add_argument("--text", nargs="+", default=[], help="hub: the text columns")
    parser.add_argument("--label", help="hub: the label column (a class, or a list of classes)")
    a = parser.parse_args(argv)
    if not 0 < a.validation < 1:
        raise UserMistake(f"--validation is {a.validation}; it must be between 0 and 1")
    for name in ("top", "limit"):
        if getattr(a, name) is not None and getattr(a, name) < 1:
            raise UserMistake(f"--{name} is {getattr(a, name)}; it must be at least 1")
    options = Options(Path(a.out), a.top, a.keep_unlabelled, a.validation, a.seed, a.limit, a.source, a.text, a.label)
    for line in write(SOURCES[a.name](options), options):
        print(line)


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
    return _keep_top(prepared, top, options)


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
        raise UserMistake("hub needs --source NAME[:CONFIG], --text COLUMN... and --label COLUMN")
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
        raise UserMistake(f"{options.source}: no document of the ModApte split; name the folder of reut2-000.sgm ...")
    return _keep_top(Prepared(splits, ["title", "body"], []), options.top or REUTERS_TOPICS, options)


SOURCES: dict[str, Callable[[Options], Prepared]] = {
    "amazoncat-13k": amazoncat, "ag_news": ag_news, "yelp": yelp, "go_emotions": go_emotions, "reuters": reuters,
    "hub": hub,
}  # fmt: skip


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


def _keep_top(prepared: Prepared, top: int, options: Options) -> Prepared:
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


def _classes(found: Any, text_columns: list[str], label: str, options: Options) -> Prepared:
    """A dataset whose label column holds a class, or a list of classes, as numbers of a ClassLabel or as text."""
    table = found["train"]
    for column in (*text_columns, label):
        if column not in table.column_names:
            raise UserMistake(f"the dataset has no column {column!r}; it has {', '.join(table.column_names)}")
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
    return _keep_top(prepared, options.top, options) if options.top else prepared


def _name_column(table: Any) -> list[str]:
    """Label names by number, from a table with a text column and maybe one of numbers."""
    texts = [c for c in table.column_names if isinstance(table[0][c], str)]
    if not texts:
        raise UserMistake(f"the table of labels has no text column; it has {', '.join(table.column_names)}")
    names = list(table[texts[0]])
    for column in table.column_names:
        values = table[column]
        if isinstance(values[0], int) and sorted(values) == list(range(len(names))):
            return [name for _, name in sorted(zip(values, names, strict=True))]
    return names


def _write_csv(path: Path, rows: Rows, prepared: Prepared, columns: dict[str, str]) -> None:
    labels = ["label"] if prepared.single else [columns[n] for n in prepared.names]
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uid", *prepared.text_columns, *labels])
        for row, names in rows:
            cells = [names[0]] if prepared.single else [int(name in names) for name in prepared.names]
            writer.writerow([row["uid"], *(row[c] for c in prepared.text_columns), *cells])


if __name__ == "__main__":
    run_command(main)
