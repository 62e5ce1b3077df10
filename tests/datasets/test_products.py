from __future__ import annotations

from pathlib import Path

from llmcls.datasets.products import make_corpus, make_rows
from tests.helpers import TOPICS, read_rows


def test_rows_are_a_function_of_the_seed_and_splits_share_none(products: Path) -> None:
    assert make_rows(50, 3) == make_rows(50, 3)
    assert make_rows(50, 3) != make_rows(50, 4)
    texts = [{r["description"] for r in read_rows(products / f"{s}.csv")} for s in ("train", "validation", "test")]
    assert not texts[0] & texts[2]
    assert len(texts[0]) > 155, "rows vary"


def test_labels_are_imbalanced_and_overlap() -> None:
    rows = make_rows(3000, 0)
    share = [sum(r[t] for r in rows) / len(rows) for t in TOPICS]
    per_row = [sum(r[t] for t in TOPICS) for r in rows]
    assert max(share) > 5 * min(share) > 0.1
    assert {0, 1, 2, 3} == set(per_row)
    assert 1.2 < sum(per_row) / len(rows) < 1.8


def test_lengths_spread_like_real_texts() -> None:
    lengths = sorted(len(r["description"].split()) for r in make_rows(1000, 0))
    assert lengths[950] > 4 * lengths[50]


def test_pretraining_texts_are_not_those_of_the_set() -> None:
    descriptions = {r["description"] for r in make_rows(500, 0)}
    assert not any(text.split("\n")[1] in descriptions for text in make_corpus(500, 0))
