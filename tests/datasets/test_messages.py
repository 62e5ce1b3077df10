from __future__ import annotations

import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from llmcls.data.labels import LabelSpace
from llmcls.datasets.messages import LABELS, SIZES, TOPICS, Sentence, make_messages, read_sentences, write_messages
from llmcls.evaluation.baselines import tfidf_linear
from llmcls.evaluation.metrics import evaluate_predictions
from llmcls.evaluation.thresholds import apply_thresholds
from llmcls.evaluation.tuning import Tuning, tune_thresholds
from tests.helpers import read_rows


@pytest.fixture(scope="module")
def sentences() -> dict[str, list[Sentence]]:
    return read_sentences()


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, str]]]:
    folder = tmp_path_factory.mktemp("messages")
    write_messages(folder)
    return {split: read_rows(folder / f"{split}.csv") for split in SIZES}


def parts(text: str, sentences: list[Sentence]) -> list[Sentence]:
    """The sentences that a message consists of."""
    found = []
    while text:
        starts = [one for one in sentences if f"{text} ".startswith(f"{one.text} ")]
        found.append(max(starts, key=lambda one: len(one.text)))
        text = text[len(found[-1].text) + 1 :]
    return found


def test_every_sentence_occurs_once_and_no_two_splits_have_near_copies(sentences) -> None:
    words = {s: [set(re.findall(r"[\w']+", one.text.lower())) for one in found] for s, found in sentences.items()}
    texts = [one.text for found in sentences.values() for one in found]
    assert len(texts) == len(set(texts)) > 800
    for here, there in combinations(words.values(), 2):
        closest = max(len(a & b) / len(a | b) for a in here for b in there)
        assert closest < 0.7


def test_every_label_has_enough_sentences_in_every_split(sentences) -> None:
    counts = {s: Counter(label for one in found for label in one.labels) for s, found in sentences.items()}
    assert set(sum(counts.values(), Counter())) == set(LABELS)
    for label in LABELS:
        assert counts["train"][label] >= 35
        assert counts["validation"][label] >= 12
        assert counts["test"][label] >= 40
    # Topics that are named only to deny them occur in every split, and with every topic somewhere.
    assert all(any(one.denied for one in found) for found in sentences.values())
    assert {topic for found in sentences.values() for one in found for topic in one.denied} == set(TOPICS)


def test_messages_consist_of_sentences_of_their_split_and_have_their_labels(sentences, tables) -> None:
    for split, rows in tables.items():
        assert len(rows) == len({row["text"] for row in rows}) == SIZES[split]
        assert len({row["uid"] for row in rows}) == len(rows)
        used: Counter[str] = Counter()
        for row in rows:
            inside = parts(row["text"], sentences[split])
            assert {label for label in LABELS if row[label] == "1"} == {x for one in inside for x in one.labels}
            topics = [label for one in inside for label in one.labels & set(TOPICS)]
            assert len(topics) == len(set(topics))
            assert not set(topics) & {topic for one in inside for topic in one.denied}
            used.update(one.text for one in inside)
        assert len(used) == len(sentences[split])
        assert max(used.values()) - min(used.values()) <= 2


def test_labels_are_neither_rare_nor_everywhere(tables) -> None:
    for rows in tables.values():
        for label in LABELS:
            assert 0.15 < sum(row[label] == "1" for row in rows) / len(rows) < 0.6


def test_messages_are_a_function_of_the_seed(sentences, tables, tmp_path: Path) -> None:
    write_messages(tmp_path)
    assert read_rows(tmp_path / "test.csv") == tables["test"]
    assert make_messages(sentences["test"], 50, 1) != make_messages(sentences["test"], 50, 0)


def test_words_alone_do_not_carry_over_to_the_test_messages(tables) -> None:
    labels = LabelSpace(list(LABELS), list(LABELS), "multi_label_classification")
    texts = {split: [row["text"] for row in rows] for split, rows in tables.items()}
    values = {s: np.array([[int(row[x]) for x in LABELS] for row in rows], np.float32) for s, rows in tables.items()}
    scores = tfidf_linear(texts, values["train"], labels)
    thresholds = tune_thresholds(scores["validation"], values["validation"], labels, Tuning())
    predicted = apply_thresholds(scores["test"], thresholds, labels)
    f1 = evaluate_predictions(scores["test"], values["test"], predicted, list(LABELS))["f1_micro"]
    # Far from perfect, and far from hopeless: the words of the splits overlap as in any small labelled set.
    assert 0.45 < f1 < 0.65
