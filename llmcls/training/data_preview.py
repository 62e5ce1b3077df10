"""What a recipe's data look like, in words: labels by split, labels that come together, lengths of texts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from scipy import sparse

from llmcls.data.encoding import encode_texts, whole_texts
from llmcls.data.label_cells import look_alikes
from llmcls.data.labels import LabelSpace, count_positives
from llmcls.data.marks import Values, labels_per_row
from llmcls.data.splits import Split
from llmcls.data.tables import read_table
from llmcls.recipe.schema import Recipe
from llmcls.training.inputs import Inputs

# Labels in the table; of more, the most frequent and the rarest ones are shown.
SHOWN = 24
# Training texts whose whole length is counted.
SAMPLE = 2000
# Characters of the sampled texts together: few books are enough to see that books are long.
SAMPLED_CHARACTERS = 2_000_000
# Labels with fewer training rows are hardly learned.
FEW = 10
# Labels of which this share of the rows also has another one.
TOGETHER = 0.8
_BAR = 30


def data_preview(recipe: Recipe, inputs: Inputs) -> list[str]:
    """The labels and the lengths of the data, one line each."""
    return [*_label_table(inputs), *_label_remarks(inputs), *_lengths(recipe, inputs)]


def data_problems(inputs: Inputs) -> list[str]:
    """What of the labels deserves a look before training. What is strange about rows is logged when they are read."""
    labels, problems = inputs.labels, []
    counts = count_positives(inputs.train_split.known_labels, labels)
    few = [name for name, count in zip(labels.names, counts, strict=True) if 0 < count < FEW]
    if few:
        problems.append(f"labels with fewer than {FEW} training rows: {_listed(few)}")
    if not labels.multi_label and 2 * len(labels.names) > len(inputs.train_split):
        problems.append(
            f"{len(labels.names):,} classes in {len(inputs.train_split):,} training rows: is {labels.columns[0]!r} the "
            "column of the class?"
        )
    alike = look_alikes(labels.names)
    if alike:
        problems.append(f"labels that differ only in writing: {_listed([f'{a!r} and {b!r}' for a, b in alike])}")
    return problems


def _splits(inputs: Inputs) -> list[Split]:
    return [split for split in (inputs.train_split, inputs.validation_split, inputs.test_split) if split is not None]


def _label_table(inputs: Inputs) -> Iterator[str]:
    """Rows with each label by split, most frequent first."""
    splits, names = _splits(inputs), inputs.labels.names
    counts = np.stack([count_positives(split.known_labels, inputs.labels) for split in splits])
    order = np.argsort(-counts[0], kind="stable")
    wide = min(40, max(len(name) for name in [*names, "label"]))
    header = "".join(f"{split.name:>12}" for split in splits)
    yield f"  {'label':<{wide}}{header}"
    half = SHOWN // 2
    chosen = list(order) if len(order) <= SHOWN else [*order[:half], None, *order[-half:]]
    for label in chosen:
        if label is None:
            yield f"  ... {len(order) - 2 * half} more labels ..."
            continue
        name = " ".join(names[label].split())
        shown = name if len(name) <= wide else f"{name[: wide - 1]}…"
        yield f"  {shown:<{wide}}" + "".join(f"{count:>12,}" for count in counts[:, label])
    yield f"  {'rows':<{wide}}" + "".join(f"{len(split):>12,}" for split in splits)


def _label_remarks(inputs: Inputs) -> Iterator[str]:
    """Labels of a row, and pairs that come together."""
    labels, values = inputs.labels, inputs.train_split.known_labels
    if not labels.multi_label:
        return
    per_row = labels_per_row(values)
    yield (
        f"labels of a training row: {per_row.mean():.2f} on average, at most {int(per_row.max())}; "
        f"{(per_row == 0).mean():.1%} of the rows have none"
    )
    pairs = _pairs(values, labels)
    if pairs:
        yield f"labels that come together: {'; '.join(pairs[:5])}"


def _pairs(values: Values, labels: LabelSpace) -> list[str]:
    """Labels most of whose rows also have another label, the most frequent first."""
    counts = np.asarray(values.sum(axis=0)).ravel()
    both = values.T @ values
    if sparse.issparse(both):
        both.setdiag(0)
    else:
        np.fill_diagonal(both, 0)
    others, most = np.asarray(both.argmax(axis=1)).ravel(), both.max(axis=1)
    most = most.toarray().ravel() if sparse.issparse(most) else most
    found = []
    for label in np.argsort(-counts, kind="stable"):
        other = int(others[label])
        if counts[label] >= FEW and most[label] >= TOGETHER * counts[label]:
            share = most[label] / counts[label]
            found.append(f"{labels.names[label]} with {labels.names[other]} ({share:.0%} of {int(counts[label])} rows)")
    return found


def _lengths(recipe: Recipe, inputs: Inputs) -> Iterator[str]:
    """A histogram of the whole lengths of a sample of the training texts, and what ``data.max_length`` cuts."""
    data = recipe.data
    table = read_table(data.train_csv, "data.train_csv", data)
    rows = np.random.default_rng(0).permutation(len(table))[:SAMPLE]
    texts = whole_texts(table.select(rows), data)
    characters = np.cumsum([len(text) for text in texts])
    texts = texts[: max(1, int(np.searchsorted(characters, SAMPLED_CHARACTERS, side="right")))]
    lengths = np.array([len(ids) for ids in encode_texts(texts, inputs.tokenizer, 10**9)])
    limit = data.max_length * (data.max_windows if data.truncation == "windows" else 1)
    cut = lengths > limit
    of = f"{len(lengths):,} training texts" if len(lengths) < len(table) else "the training texts"
    yield f"lengths of {of} in tokens, without the prompt: median {np.median(lengths):.0f}, longest {lengths.max():,}"
    edges = [0, *(2**power for power in range(4, 40) if 2 ** (power - 1) < lengths.max())]
    for low, high in itertools.pairwise(edges):
        count = int(((lengths > low) & (lengths <= high)).sum())
        bar = "#" * round(_BAR * count / len(lengths))
        yield f"  {low + 1:>6} to {high:<6} {count:>6} {bar}".rstrip()
    if cut.any():
        lost = float((lengths[cut] - limit).sum() / lengths.sum())
        needed = int(np.quantile(lengths, 0.99))
        yield (
            f"data.max_length={data.max_length} cuts {cut.mean():.1%} of the texts and loses {lost:.1%} of all tokens; "
            f"{needed} would hold 99% of the texts"
        )
    else:
        yield f"data.max_length={data.max_length} cuts no text"


def _listed(words: list[str], most: int = 5) -> str:
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")
