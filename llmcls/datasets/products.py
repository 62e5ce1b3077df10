"""The generator of the demo dataset: product texts with ten labels, which need no download.

`llmcls.quickstart` writes its rows as CSV files and pretrains a tiny Llama on its corpus.

Texts are generated from a small grammar. Each label has its own nouns and shares some with other labels. Some sentences
mention a product only to say that it is not included, and other sentences carry no information about the labels. So the
task is neither trivial nor unsolvable.
"""

from __future__ import annotations

import csv
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcls.common.files import replacing


@dataclass(frozen=True)
class Topic:
    """A label of the demo dataset.

    Attributes
    ----------
    share : float
        Relative frequency.
    words : str
        Product names, separated by ``|``.
    traits : str
        Phrases that describe the products, separated by ``|``.
    """

    share: float
    words: str
    traits: str


TOPICS: dict[str, Topic] = {
    "books": Topic(
        0.30, "novel|paperback|hardcover edition|short story collection|memoir|trilogy|chapter book|anthology",
        "gripping from page one|printed on thick paper|by a debut author|with a foreword by the editor|in large print",
    ),
    "music": Topic(
        0.22, "album|vinyl record|live recording|greatest hits|soundtrack|double disc|acoustic session|guitar strings",
        "remastered from tape|with liner notes|a warm bass line|the chorus stays with you|recorded in one take",
    ),
    "movies": Topic(
        0.20, "film|director's cut|thriller on disc|documentary|box set|black and white classic|soundtrack|trilogy",
        "with deleted scenes|subtitled in nine languages|a stunning finale|shot on location|with audio commentary",
    ),
    "kitchen": Topic(
        0.16, "frying pan|chef's knife|stand mixer|espresso maker|baking tin|cutting board|kettle|measuring cups",
        "safe in the dishwasher|heats evenly|with a non-stick coating|sharp out of the box|fits small counters",
    ),
    "garden": Topic(
        0.11, "pruning shears|watering can|raised bed kit|lawn rake|compost bin|seed mix|cutting board|outdoor lantern",
        "rust free after winter|blooms until autumn|for heavy soil|with an ash handle|holds forty litres",
    ),
    "electronics": Topic(
        0.14, "wireless charger|noise cancelling headphones|bluetooth speaker|tablet|usb hub|smart bulb|drone|kettle",
        "with a two year battery|pairs in seconds|supports fast charging|firmware updates included|low latency",
    ),
    "toys": Topic(
        0.10, "building blocks|jigsaw puzzle|plush bear|board game|model train|drone|marble run|doll house",
        "for ages six and up|keeps the kids busy|no small parts|painted by hand|four players at most",
    ),
    "sports": Topic(
        0.08, "yoga mat|running shoes|climbing rope|tennis racket|kettlebell|cycling jersey|swim goggles|ski poles",
        "grips when wet|for marathon training|light on long climbs|tested by athletes|quick drying",
    ),
    "pets": Topic(
        0.05, "cat tree|dog leash|aquarium filter|bird feeder|chew bone|litter box|hamster wheel|plush bear",
        "loved by our terrier|vet recommended|easy to hose down|for shy kittens|chew proof",
    ),
    "vintage": Topic(
        0.04, "vinyl record|typewriter|pocket watch|enamel sign|film camera|tin lunchbox|brass lamp|postcard lot",
        "from the nineteen fifties|with honest patina|found at an estate sale|in working order|a collector's piece",
    ),
}  # fmt: skip
# Labels that often occur together: half of the second and third labels are drawn from here.
COMPANIONS = {
    "books": ["movies", "vintage"], "music": ["vintage", "movies"], "movies": ["music", "books"],
    "kitchen": ["garden", "electronics"], "garden": ["pets", "kitchen"], "electronics": ["music", "toys"],
    "toys": ["books", "pets"], "sports": ["electronics", "garden"], "pets": ["toys", "garden"],
    "vintage": ["books", "music"],
}  # fmt: skip
TITLES = "{a} {thing}|{thing}, {trait}|{thing} for {who}|our {a} {thing}|{thing} in a gift box|the {thing}"
AFFIRM = (
    "This {a} {thing} is {trait}.|You get one {thing}, {trait}.|Customers praise the {thing}: {trait}.|"
    "I ordered the {thing} for {who} and it is {trait}.|The {thing} comes {trait}, which {who} will like.|"
    "Inside the parcel lies a {a} {thing}.|{trait}, that is how {who} describes this {thing}."
)
DENY = (
    "Please note that no {thing} is included.|Not to be confused with our {thing}.|"
    "If you were looking for a {thing}, this is not it.|It replaces the {thing} we no longer sell."
)
FILLER = (
    "Delivery takes three to five days.|Returns are free within a month.|We answer every message the same evening.|"
    "The parcel left the warehouse on a Tuesday.|My neighbour recommended this shop.|Packed without plastic.|"
    "Prices include all taxes.|I bought it as a present for {who}.|The colour differs a little from the picture.|"
    "It arrived one day early.|The invoice is in the box.|Four stars because the box was dented.|"
    "Would buy again from this seller.|Made for everyday use.|A good choice for {who}.|Second purchase, no regrets."
)
# Products in the last line of an unlabelled text.
ALSO_BOUGHT = 6
ADJECTIVES = "sturdy|lovely|compact|brand new|slightly used|handy|premium|simple|limited|well made|cheerful|classic"
PEOPLE = "my sister|a friend|the whole family|beginners|my father|students|the office|our daughter|collectors"


def make_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Generate rows. The same arguments give the same rows.

    Parameters
    ----------
    count : int
        Number of rows.
    seed : int

    Returns
    -------
    list of dict
        "uid", "title", "description", and a 0/1 value for each label.
    """
    rng = random.Random(seed)
    return [_make_row(rng, f"P{seed:02d}{i:06d}") for i in range(count)]


def make_corpus(count: int, seed: int) -> list[str]:
    """Generate unlabelled texts for language model pretraining. They are not rows of `make_rows`.

    They end as the pages of a shop do, with a line of what customers also bought: products of the same labels, no
    labels. To predict that line, a language model must learn which products belong together, and to look back at those
    that the text is about.

    Parameters
    ----------
    count : int
        Number of texts.
    seed : int

    Returns
    -------
    list of str
    """
    rng = random.Random(f"corpus {seed}")
    texts = []
    for _ in range(count):
        labels = _draw_labels(rng)
        row = _make_row(rng, "", labels)
        bought = [rng.choice(TOPICS[rng.choice(labels)].words.split("|")) for _ in range(ALSO_BOUGHT) if labels]
        texts.append(f"{row['title']}\n{row['description']}\nAlso bought: {', '.join(bought) or 'nothing'}")
    return texts


def _make_row(rng: random.Random, uid: str, labels: list[str] | None = None) -> dict[str, Any]:
    """A row with the given labels, or with random ones."""
    labels = _draw_labels(rng) if labels is None else labels
    sentences = [_sentence(rng, AFFIRM, label) for label in labels for _ in range(rng.choice((1, 1, 2)))]
    if rng.random() < 0.4:
        other = rng.choice([t for t in TOPICS if t not in labels])
        sentences.append(_sentence(rng, DENY, other))
    # Log-normal lengths, similar to real product texts: many short texts and a few long ones.
    filler = min(24, int(rng.lognormvariate(1.1, 0.8)))
    sentences += [_sentence(rng, FILLER, None) for _ in range(filler)]
    rng.shuffle(sentences)
    topic_of_title = rng.choice(labels) if labels and rng.random() < 0.6 else None
    title = (
        _sentence(rng, TITLES, topic_of_title)
        if topic_of_title
        else rng.choice(("Special offer", "New arrival", "Order review"))
    )
    row: dict[str, Any] = {"uid": uid, "title": title, "description": " ".join(sentences)}
    return row | {topic: int(topic in labels) for topic in TOPICS}


def _draw_labels(rng: random.Random) -> list[str]:
    """Between 0 and 3 different labels."""
    names = list(TOPICS)
    count = rng.choices((0, 1, 2, 3), weights=(4, 56, 30, 10))[0]
    labels: list[str] = []
    while len(labels) < count:
        companions = [n for label in labels for n in COMPANIONS[label]]
        pool = companions if companions and rng.random() < 0.5 else names
        label = rng.choices(pool, weights=[TOPICS[n].share for n in pool])[0]
        if label not in labels:
            labels.append(label)
    return labels


def _sentence(rng: random.Random, patterns: str, label: str | None) -> str:
    """A random pattern, filled with words of a label."""
    topic = TOPICS[label] if label else None
    text = rng.choice(patterns.split("|")).format(
        a=rng.choice(ADJECTIVES.split("|")),
        who=rng.choice(PEOPLE.split("|")),
        thing=rng.choice(topic.words.split("|")) if topic else "",
        trait=rng.choice(topic.traits.split("|")) if topic else "",
    )
    return text[0].upper() + text[1:]


def write_data(folder: Path, seed: int, sizes: dict[str, int]) -> None:
    """Write one CSV file per split. The splits use different random seeds.

    Parameters
    ----------
    folder : Path
    seed : int
    sizes : dict of int
        Number of rows of each split, by name.
    """
    for i, (name, count) in enumerate(sizes.items()):
        rows = make_rows(count, 3 * seed + i)
        path = folder / f"{name}.csv"
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
