"""Wrong decisions, labels that are probably wrong, and test texts seen in training."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmcls.data.labels import LabelSpace


@dataclass
class Texts:
    """A split's texts by row. ids: as in the predictions."""

    ids: list[str]
    texts: list[str]


def confident_mistakes(
    ids: list[str], probabilities: np.ndarray, true: np.ndarray, predicted: np.ndarray, labels: LabelSpace,
    text_of: dict[str, str],
) -> list[dict[str, Any]]:  # fmt: skip
    """Wrong decisions, the surest first: of each row its surest wrong label.

    Parameters
    ----------
    probabilities: float [rows, labels]. true, predicted: bool [rows, labels].
    """
    sure = np.where(predicted, probabilities, 1 - probabilities) * (predicted != true)
    rows = np.flatnonzero((predicted != true).any(axis=1))
    rows = rows[np.argsort(-sure[rows].max(axis=1), kind="stable")]
    return [
        {
            "id": ids[row],
            "label": labels.names[(label := int(sure[row].argmax()))],
            "said": bool(predicted[row, label]),
            "probability": float(probabilities[row, label]),
            "true": [n for n, on in zip(labels.names, true[row], strict=True) if on],
            "text": excerpt(text_of.get(ids[row], "")),
        }
        for row in rows
    ]


def label_errors(
    ids: list[str], probabilities: np.ndarray, true: np.ndarray, labels: LabelSpace, text_of: dict[str, str]
) -> list[dict[str, Any]]:
    """Given labels that are probably wrong, after confident learning (Northcutt et al. 2021), label by label.

    A cell is suspect when the model believes the other value, and about as much as it does of rows that have that
    value: to their mean less two standard deviations, since half of the honest rows lie below the mean itself.
    Ordered by how little the model believes the given value.
    """
    suspects = []
    for i, name in enumerate(labels.names):
        p, given = probabilities[:, i], true[:, i]
        if given.all() or not given.any():
            continue
        missing = ~given & (p >= max(0.5, p[given].mean() - 2 * p[given].std()))
        wrong = given & (p <= min(0.5, p[~given].mean() + 2 * p[~given].std()))
        for row in np.flatnonzero(missing | wrong):
            belief = float(p[row] if given[row] else 1 - p[row])
            suspects.append((belief, int(row), name, bool(given[row])))
    return [
        {"id": ids[row], "label": name, "given": given, "belief": belief, "text": excerpt(text_of.get(ids[row], ""))}
        for belief, row, name, given in sorted(suspects)
    ]


def near_duplicates(train: Texts, other: Texts, similar: float) -> list[dict[str, Any]]:
    """Texts of ``other`` that lie in ``train`` nearly word for word: cosine of their runs of three words.

    Hashed counts (no vocabulary in memory), multiplied in blocks of rows.
    """
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(
        ngram_range=(3, 3), token_pattern=r"(?u)\b\w+\b", alternate_sign=False, dtype=np.float32
    )
    known, found = vectorizer.transform(train.texts), vectorizer.transform(other.texts)
    pairs = []
    for start in range(0, found.shape[0], 512):
        product = (found[start : start + 512] @ known.T).tocsr()
        for i in range(product.shape[0]):
            row = product[i]
            if row.nnz and row.data.max() >= similar:
                best = int(row.data.argmax())
                pairs.append((float(row.data[best]), start + i, int(row.indices[best])))
    return [
        {"id": other.ids[i], "train_id": train.ids[j], "cosine": round(cosine, 4), "text": excerpt(other.texts[i])}
        for cosine, i, j in sorted(pairs, key=lambda pair: (-pair[0], pair[1]))
    ]


def excerpt(text: str, width: int = 100) -> str:
    """The beginning of a text on one line."""
    line = " ".join(html.unescape(text).split())
    return line if len(line) <= width else line[: width - 1] + "…"
