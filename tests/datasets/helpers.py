"""Stand-ins for the hub: its tables in their real formats, in small."""

from __future__ import annotations

from typing import Any

import datasets
import pytest

from llmcls.prepare import main

# From the most to the least frequent, as in the real set.
AMAZON = [
    "books", "movies & tv", "music", "pop", "literature & fiction", "movies", "education & reference", "rock",
    "used & rental textbooks", "new", "zz rare",
]  # fmt: skip


def amazon_rows(count: int, start: int) -> dict[str, list[Any]]:
    # Row i has the labels whose number is at most i % 12: label 0 is the most frequent, and one row in 12 has none.
    numbers = [[(n * 3) % 11 for n in range(i % 12)] for i in range(count)]
    return {
        "uid_original": [f"B{i:09d}" for i in range(count)],
        "title": [f"title {i}" for i in range(count)],
        "content": [f"content, with a comma\nand line {i}" for i in range(count)],
        "target_ind": numbers,
        "target_rel": [[1.0] * len(n) for n in numbers],
        "text": [f"title {i}\ncontent, with a comma\nand line {i}" for i in range(count)],
        "uid": list(range(start, start + count)),
    }


def amazon(name: str, config: str | None, split: str | None) -> datasets.Dataset:
    assert name == "pietrolesci/amazoncat-13k"
    if config == "labels":
        # The hub's table of names; the number of a label is its row. Names are in the order of their numbers.
        names = [""] * 11
        for rank, label in enumerate(AMAZON):
            names[(rank * 3) % 11] = label
        return datasets.Dataset.from_dict({"labels": names})
    return datasets.Dataset.from_dict(amazon_rows(240 if split == "train" else 60, 0 if split == "train" else 1000))


def prepare(monkeypatch: pytest.MonkeyPatch, fetched: Any, *arguments: str) -> None:
    monkeypatch.setattr(
        "llmcls.datasets.sources.fetch", lambda name, config=None, split=None: fetched(name, config, split)
    )
    main(list(arguments))
