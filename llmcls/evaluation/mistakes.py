"""Analysis of mistakes: confident wrong decisions, probable label errors, and near-duplicates of training texts."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from llmcls.data.labels import LabelSpace
from llmcls.evaluation.bootstrap import Marks


@dataclass
class Texts:
    """The texts of a split, by row.

    Attributes
    ----------
    ids : list of str
        As in the predictions.
    texts : list of str
    """

    ids: list[str]
    texts: list[str]


def confident_mistakes(
    ids: list[str], probabilities: Marks, true: Marks, predicted: Marks, labels: LabelSpace, text_of: dict[str, str]
) -> list[dict[str, Any]]:
    """Rows with a wrong decision, most confident first.

    Parameters
    ----------
    ids : list of str
        Row ids.
    probabilities : float [rows, labels]
    true, predicted : bool [rows, labels]
    labels : LabelSpace
    text_of : dict
        Row id to text.

    Returns
    -------
    list of dict
        For each row, its wrong decision with the highest confidence: "id", "label", "said" (the decision),
        "probability", "true" (the names of the true labels) and "text" (the beginning). With many labels, a label that
        was not kept has the probability 0.
    """
    if labels.many:
        return _sparse_mistakes(ids, probabilities, true, predicted, labels, text_of)
    confidence = np.where(predicted, probabilities, 1 - probabilities) * (predicted != true)
    rows = np.flatnonzero((predicted != true).any(axis=1))
    rows = rows[np.argsort(-confidence[rows].max(axis=1), kind="stable")]
    return [
        {
            "id": ids[row],
            "label": labels.names[(label := int(confidence[row].argmax()))],
            "said": bool(predicted[row, label]),
            "probability": float(probabilities[row, label]),
            "true": [n for n, on in zip(labels.names, true[row], strict=True) if on],
            "text": excerpt(text_of.get(ids[row], "")),
        }
        for row in rows
    ]


def _sparse_mistakes(
    ids: list[str], probabilities: sparse.csr_matrix, true: sparse.csr_matrix, predicted: sparse.csr_matrix,
    labels: LabelSpace, text_of: dict[str, str],
) -> list[dict[str, Any]]:  # fmt: skip
    """As `confident_mistakes`, from sparse marks."""
    wrong = (predicted != true).tocoo()
    given = np.asarray(probabilities[wrong.row, wrong.col]).ravel() if wrong.nnz else np.zeros(0, np.float32)
    said = np.asarray(predicted[wrong.row, wrong.col]).ravel() if wrong.nnz else np.zeros(0, bool)
    confidence = np.where(said, given, 1 - given)
    order = np.lexsort((wrong.col, -confidence, wrong.row))
    first = order[np.unique(wrong.row[order], return_index=True)[1]]
    return [
        {
            "id": ids[wrong.row[cell]],
            "label": labels.names[wrong.col[cell]],
            "said": bool(said[cell]),
            "probability": float(given[cell]),
            "true": [labels.names[label] for label in true[wrong.row[cell]].indices],
            "text": excerpt(text_of.get(ids[wrong.row[cell]], "")),
        }
        for cell in first[np.argsort(-confidence[first], kind="stable")]
    ]


def label_errors(
    ids: list[str], probabilities: Marks, true: Marks, labels: LabelSpace, text_of: dict[str, str]
) -> list[dict[str, Any]]:
    """Labels of the data that are probably wrong.

    Parameters
    ----------
    ids : list of str
        Row ids.
    probabilities : float [rows, labels]
    true : bool [rows, labels]
        The labels of the data.
    labels : LabelSpace
    text_of : dict
        Row id to text.

    Returns
    -------
    list of dict
        "id", "label", "given" (the value in the data), "belief" (the predicted probability of the given value) and
        "text" (the beginning), lowest belief first.

    Notes
    -----
    Follows confident learning (Northcutt et al. 2021), separately for each label. A cell is reported if the model
    predicts the other value about as confidently as for rows that have that value. The limit is the mean probability of
    the other value in those rows minus two standard deviations, because about half of the correctly labelled rows are
    below the mean itself, but at least 0.5. With many labels, a label that was not kept has the probability 0.
    """
    suspects = []
    for i, (p, given) in _columns(probabilities, true):
        name = labels.names[i]
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


def _columns(probabilities: Any, true: Any) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray]]]:
    """The probabilities and the marks of each label; of sparse ones, of the labels that a row has or is given."""
    if not sparse.issparse(true):
        yield from ((i, (probabilities[:, i], true[:, i])) for i in range(true.shape[1]))
        return
    by_label, marks = probabilities.tocsc(), true.tocsc()
    sure = np.zeros(true.shape[1], dtype=bool)
    sure[probabilities.indices[probabilities.data >= 0.5]] = True
    for i in np.flatnonzero(sure | (marks.getnnz(axis=0) > 0)):
        yield int(i), (by_label[:, [i]].toarray().ravel(), marks[:, [i]].toarray().ravel())


def near_duplicates(train: Texts, other: Texts, similar: float) -> list[dict[str, Any]]:
    """Texts that occur almost word for word in the training split.

    Parameters
    ----------
    train : Texts
        The training split.
    other : Texts
        The split that is searched for near-duplicates.
    similar : float
        Minimum cosine similarity.

    Returns
    -------
    list of dict
        "id", "train_id" (the most similar training text), "cosine" and "text" (the beginning), most similar first.

    Notes
    -----
    The cosine is that of the counts of word trigrams. The trigrams are hashed, so no vocabulary is kept in memory.
    """
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(
        ngram_range=(3, 3), token_pattern=r"(?u)\b\w+\b", alternate_sign=False, dtype=np.float32
    )
    train_counts, other_counts = vectorizer.transform(train.texts), vectorizer.transform(other.texts)
    pairs = []
    # In blocks of rows, to limit the memory of the product.
    for start in range(0, other_counts.shape[0], 512):
        cosines = (other_counts[start : start + 512] @ train_counts.T).tocsr()
        for i in range(cosines.shape[0]):
            row = cosines[i]
            if row.nnz and row.data.max() >= similar:
                best = int(row.data.argmax())
                pairs.append((float(row.data[best]), start + i, int(row.indices[best])))
    return [
        {"id": other.ids[i], "train_id": train.ids[j], "cosine": round(cosine, 4), "text": excerpt(other.texts[i])}
        for cosine, i, j in sorted(pairs, key=lambda pair: (-pair[0], pair[1]))
    ]


def excerpt(text: str, width: int = 100) -> str:
    """The beginning of a text, on one line and without HTML entities.

    Examples
    --------
    >>> excerpt("Salt &amp;\\n pepper")
    'Salt & pepper'
    >>> excerpt("a long text", width=7)
    'a long…'
    """
    line = " ".join(html.unescape(text).split())
    return line if len(line) <= width else line[: width - 1] + "…"
