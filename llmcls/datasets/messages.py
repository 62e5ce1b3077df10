"""The set of the quickstart: short English messages to a shop, with eight labels, written by hand for this project.

The set is small on purpose, and made so that meaning decides:

- The training messages are written in common words. Validation and test are later messages of other customers, who
  use their own: "package" and "shipping" there, "parcel", "courier" and "doorstep" here.
- Some sentences name a topic only to say that they are not about it: "I'm not after my money back, just tell me where
  it is" is about delivery. "The material feels cheap" is about the product and not about its price.

`messages.tsv` holds the sentences, one a line: split, labels, denied topics, sentence. Every sentence belongs to one
split. Its labels follow these rules:

==========  =====================================================================================
delivery    shipping and arrival of an order, and where it is
refund      money that the customer wants back, or got back
price       what something costs, discounts and fees
product     what a product is like, whether it works, and how long it lasts
staff       a person who works for the shop, or talking to one
account     login, password, profile and stored data of the customer
praise      the sentence says that something is good
complaint   the sentence says that something is bad or went wrong; a plain request or question is none
==========  =====================================================================================

A message is one, two or three sentences of its split, drawn with a seed, and has the labels of all of them. Its
sentences share no topic, none denies the topic of another, and an unbound "Never again." does not meet praise. All
sentences of a split are drawn equally often, give or take one.
"""

from __future__ import annotations

import csv
import random
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from llmcls.common.files import replacing

TOPICS = ("delivery", "refund", "price", "product", "staff", "account")
OPINIONS = ("praise", "complaint")
LABELS = (*TOPICS, *OPINIONS)
SIZES = {"train": 400, "validation": 150, "test": 400}
# Share of the messages with one, two and three sentences.
LENGTHS = (0.5, 0.35, 0.15)


@dataclass(frozen=True)
class Sentence:
    """A sentence of the set.

    Attributes
    ----------
    text : str
    labels : frozenset of str
        Of `LABELS`.
    denied : frozenset of str
        Topics that the sentence mentions only to say that it is not about them.
    """

    text: str
    labels: frozenset[str]
    denied: frozenset[str]

    def fits(self, other: Sentence) -> bool:
        """Whether both can be in one message."""
        topics, others = self.labels.intersection(TOPICS), other.labels.intersection(TOPICS)
        if topics & others or topics & other.denied or others & self.denied or self == other:
            return False
        unbound = not topics or not others
        return not (unbound and self.labels | other.labels >= set(OPINIONS))


def read_sentences() -> dict[str, list[Sentence]]:
    """The sentences of each split, as they are in ``messages.tsv``."""
    text = resources.files("llmcls.datasets").joinpath("messages.tsv").read_text(encoding="utf-8")
    sentences: dict[str, list[Sentence]] = {split: [] for split in SIZES}
    for line in text.splitlines()[1:]:
        split, labels, denied, sentence = line.split("\t")
        sentences[split].append(Sentence(sentence, frozenset(labels.split()), frozenset(denied.split())))
    return sentences


def make_messages(sentences: list[Sentence], count: int, seed: int) -> list[dict[str, Any]]:
    """Compose different messages of sentences. The same arguments give the same messages.

    Parameters
    ----------
    sentences : list of Sentence
        Of one split.
    count : int
        Number of messages.
    seed : int

    Returns
    -------
    list of dict
        "text", and a 0/1 value for each label.
    """
    rng = random.Random(seed)
    deck: list[Sentence] = []
    messages: dict[str, set[str]] = {}
    while len(messages) < count:
        wanted = rng.choices((1, 2, 3), weights=LENGTHS)[0]
        chosen: list[Sentence] = []
        while len(chosen) < wanted:
            found = next((i for i, s in enumerate(deck) if all(s.fits(other) for other in chosen)), None)
            if found is None:
                # A deck is used up before the next one, so that all sentences are drawn equally often.
                deck += rng.sample(sentences, len(sentences))
            else:
                chosen.append(deck.pop(found))
        messages[" ".join(s.text for s in chosen)] = {label for s in chosen for label in s.labels}
    return [{"text": text} | {label: int(label in labels) for label in LABELS} for text, labels in messages.items()]


def write_messages(folder: Path, seed: int = 0) -> None:
    """Write ``train.csv``, ``validation.csv`` and ``test.csv``: id, text, and a 0/1 column for each label.

    Parameters
    ----------
    folder : Path
    seed : int
    """
    for split, sentences in read_sentences().items():
        rows = make_messages(sentences, SIZES[split], seed)
        path = folder / f"{split}.csv"
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=["uid", *rows[0]])
            writer.writeheader()
            writer.writerows({"uid": f"{split}-{i:03d}"} | row for i, row in enumerate(rows))
