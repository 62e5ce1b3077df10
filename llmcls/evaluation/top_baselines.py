"""Baselines of tasks with many labels: the most frequent labels, and the nearest centroid of TF-IDF features.

A linear model for each of thousands of labels would take hours; the centroids of all labels are one sparse product.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from scipy import sparse

from llmcls.data.labels import LabelSpace, count_positives
from llmcls.evaluation.baseline_store import Baseline, log_baseline
from llmcls.evaluation.thresholds import fixed_thresholds
from llmcls.evaluation.top_metrics import Frequencies, evaluate_top, top_uncertainty
from llmcls.evaluation.top_scores import TopScores, decide_top, shared_threshold, together, top_of
from llmcls.evaluation.tuning import Tuning
from llmcls.recipe.schema import Recipe

# Training texts that centroids are made of at most, and words that they have.
MOST_TEXTS, MOST_WORDS = 100_000, 50_000
# Texts whose scores of all labels are dense at a time.
_ROWS = 256


def top_baselines(
    texts: dict[str, list[str]], values: dict[str, sparse.csr_matrix], recipe: Recipe, labels: LabelSpace
) -> dict[str, Baseline]:
    """Measure the baselines "majority" and "tfidf_centroid", with a threshold tuned on validation.

    Parameters
    ----------
    texts : dict of list of str
        The texts of each split.
    values : dict of sparse float32 [rows, labels]
        The labels of each split.
    recipe : Recipe
    labels : LabelSpace
    """
    train, counts = recipe.train, count_positives(values["train"], labels)
    found = Frequencies(counts, len(texts["train"]), train.propensity_a, train.propensity_b)
    result = {}
    for name, scored in (("majority", frequent_labels), ("tfidf_centroid", nearest_centroids)):
        start = time.perf_counter()
        result[name] = _measure(scored(texts, values["train"], train.top_labels), values, recipe, labels, found)
        log_baseline(name, result[name], labels, time.perf_counter() - start)
    return result


def frequent_labels(texts: dict[str, list[str]], train: sparse.csr_matrix, kept: int) -> dict[str, TopScores]:
    """Give every text the share of training rows of each label as its probability.

    Parameters
    ----------
    texts : dict of list of str
    train : sparse float32 [rows, labels]
        The labels of the training texts.
    kept : int
        Labels of a text that are kept.
    """
    shares = np.asarray(train.mean(axis=0), dtype=np.float32)
    row = top_of(shares, kept)
    return {
        split: TopScores(
            sparse.vstack([row.probabilities] * len(rows), format="csr"), np.tile(row.best, (len(rows), 1))
        )
        for split, rows in texts.items()
        if split != "train"
    }


def nearest_centroids(texts: dict[str, list[str]], train: sparse.csr_matrix, kept: int) -> dict[str, TopScores]:
    """The cosine between a text and the mean TF-IDF vector of the training texts of each label.

    Parameters
    ----------
    texts, train, kept
        As for `frequent_labels`.

    Notes
    -----
    Rocchio's classifier (Manning, Raghavan & Schütze 2008, "Introduction to Information Retrieval", section 14.2), with
    cosines in place of distances. Centroids are made of at most `MOST_TEXTS` texts.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    rows = np.arange(len(texts["train"]))
    if len(rows) > MOST_TEXTS:
        rows = np.sort(np.random.default_rng(0).choice(rows, MOST_TEXTS, replace=False))
    known = [texts["train"][row] for row in rows]
    if not any(text.split() for text in known):
        return frequent_labels(texts, train, kept)
    vectorizer = TfidfVectorizer(sublinear_tf=True, max_features=MOST_WORDS, token_pattern=r"(?u)\S+", dtype=np.float32)
    centroids = normalize(train[rows].T @ vectorizer.fit_transform(known)).T.tocsr()

    def scored(of: list[str]) -> Iterator[TopScores]:
        features = vectorizer.transform(of)
        for first in range(0, len(of), _ROWS):
            yield top_of((features[first : first + _ROWS] @ centroids).toarray(), kept)

    return {split: together(list(scored(of))) for split, of in texts.items() if split != "train"}


def _measure(
    scored: dict[str, TopScores], values: dict[str, sparse.csr_matrix], recipe: Recipe, labels: LabelSpace,
    found: Frequencies,
) -> Baseline:  # fmt: skip
    """Decide and measure each scored split."""
    tuning, baseline = Tuning.of(recipe.train), Baseline({}, {})
    thresholds = fixed_thresholds(len(labels.names), at_least_one=tuning.at_least_one)
    if "validation" in scored:
        true = values["validation"].astype(bool)
        thresholds = shared_threshold(scored["validation"].probabilities, true, labels, tuning)
    for split, scores in scored.items():
        true, predicted = values[split].astype(bool), decide_top(scores.probabilities, thresholds, labels)
        metrics = evaluate_top(scores, true, predicted, labels, found)
        metrics["intervals"] = top_uncertainty(true, predicted, labels)["intervals"]
        del metrics["per_class"]
        baseline.metrics[split], baseline.decisions[split] = metrics, predicted
    return baseline
