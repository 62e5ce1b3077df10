from __future__ import annotations

import numpy as np

from llmcls.data.labels import LabelSpace
from llmcls.evaluation.mistakes import Texts, confident_mistakes, excerpt, label_errors, near_duplicates

LABELS = LabelSpace(["a", "b"], ["a", "b"], "multi_label_classification")


def test_the_most_confident_mistake_comes_first() -> None:
    p = np.array([[0.9, 0.2], [0.55, 0.01], [0.1, 0.1], [0.6, 0.1]], dtype=np.float32)
    true = np.array([[True, False], [False, True], [False, False], [False, False]])
    found = confident_mistakes(["x", "y", "z", "w"], p, true, p >= 0.5, LABELS, {"y": "text of y"})
    assert [m["id"] for m in found] == ["y", "w"]
    # Row y is wrong in both labels; it is most confident about b.
    assert (found[0]["label"], found[0]["said"], found[0]["text"]) == ("b", False, "text of y")
    assert (found[1]["label"], found[1]["said"], found[1]["true"]) == ("a", True, [])


def test_flipped_labels_are_found() -> None:
    rng = np.random.default_rng(0)
    true = rng.random((300, 2)) < 0.5
    p = np.clip(np.where(true, 0.85, 0.15) + rng.normal(0, 0.08, true.shape), 0.01, 0.99)
    given, flipped = true.copy(), rng.choice(300, 6, replace=False)
    given[flipped, 0] ^= True
    found = label_errors([str(i) for i in range(300)], p, given, LABELS, {})
    first = {e["id"] for e in found[:6]}
    assert first == {str(i) for i in flipped}
    assert all(e["label"] == "a" and e["belief"] < 0.5 for e in found[:6])


def test_a_label_that_all_rows_have_has_no_errors() -> None:
    true = np.array([[True, False]] * 4)
    assert label_errors(list("wxyz"), np.full((4, 2), 0.5), true, LABELS, {}) == []


def test_near_duplicates_are_paired_and_similar_texts_are_not() -> None:
    story = "the parcel left the warehouse on a tuesday and arrived one day early in a dented box"
    train_texts = Texts(["t0", "t1"], ["something else entirely about garden rakes and rain", story])
    other = Texts(["o0", "o1", "o2"], [story.upper() + "!", "the parcel left the shop on a friday", story[:60]])
    found = near_duplicates(train_texts, other, 0.9)
    assert [(d["id"], d["train_id"]) for d in found] == [("o0", "t1")]
    assert [d["id"] for d in near_duplicates(train_texts, other, 0.5)] == ["o0", "o2"]


def test_an_excerpt_is_one_line_without_entities() -> None:
    assert excerpt("Salt &amp;\n  pepper") == "Salt & pepper"
    assert excerpt("x" * 101) == "x" * 99 + "…"
