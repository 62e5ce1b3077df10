"""Baselines of the texts alone: the most frequent labels, and a linear model of TF-IDF features."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from llmcls.common.logit import sigmoid
from llmcls.data.encoding import whole_texts
from llmcls.data.holdout import kept_rows, rows_of_split
from llmcls.data.labels import LabelSpace, multi_hot, values_of
from llmcls.data.marks import Values
from llmcls.data.soft_labels import read_hard_labels
from llmcls.data.subset import chosen_rows
from llmcls.data.tables import read_table
from llmcls.evaluation.baseline_store import Baseline, BaselineStore, log_baseline
from llmcls.evaluation.bootstrap import bootstrap_intervals
from llmcls.evaluation.metrics import evaluate_predictions
from llmcls.evaluation.thresholds import apply_thresholds, fixed_thresholds
from llmcls.evaluation.top_baselines import top_baselines
from llmcls.evaluation.tuning import Tuning, tune_thresholds
from llmcls.recipe.schema import SPLIT_KEYS, Recipe

log = logging.getLogger(__name__)


# Up to these limits, both baselines take less than a minute on one core: bytes of the training file, and bytes times
# labels.
QUICK_BYTES = 50_000_000
QUICK_WORK = 500_000_000


def store_baselines(recipe: Recipe, labels: LabelSpace, store: BaselineStore) -> None:
    """Run the baselines and store them, unless the store has those of the same recipe and files.

    Parameters
    ----------
    recipe : Recipe
        Without effect if its ``exp.baselines`` is false.
    labels : LabelSpace
    store : BaselineStore
    """
    if recipe.exp.baselines is False:
        return
    key = baseline_key(recipe, labels)
    if store.key("texts") != key:
        store.write("texts", key, run_baselines(recipe, labels) or {})


def baseline_key(recipe: Recipe, labels: LabelSpace, *more: Any) -> str:
    """A hash of what baselines depend on: data, labels, how decisions are made, and ``more``."""
    contents = [_digest(Path(file)) for file in recipe.data.files().values()]
    inputs = [asdict(recipe.data), asdict(labels), asdict(Tuning.of(recipe.train)), contents, *more]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


def _digest(path: Path) -> str:
    """The SHA-256 digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run_baselines(recipe: Recipe, labels: LabelSpace) -> dict[str, Baseline] | None:
    """Train and evaluate the baselines "majority" and "tfidf_linear", with the thresholds and metrics of the recipe.

    Parameters
    ----------
    recipe : Recipe
    labels : LabelSpace

    Returns
    -------
    dict of Baseline or None
        None if the baselines would take long and ``exp.baselines`` is not set.
    """
    # Decided by the size of the file, so that a large file is not read into memory first.
    size = Path(recipe.data.train_csv).stat().st_size
    # With many labels there is no model for each of them.
    work = size if labels.many else size * len(labels.names)
    if recipe.exp.baselines is None and (size > QUICK_BYTES or work > QUICK_WORK):
        log.info("baselines are skipped: they would take more than a minute; set exp.baselines=true to run them")
        return None
    texts, values = read_splits(recipe, labels)
    if labels.many:
        return top_baselines(texts, values, recipe, labels)
    result = {}
    for name, baseline in (("majority", majority), ("tfidf_linear", tfidf_linear)):
        start = time.perf_counter()
        scores = baseline(texts, values["train"], labels)
        result[name] = measure_baseline(scores, values, recipe, labels)
        log_baseline(name, result[name], labels, time.perf_counter() - start)
    return result


def measure_baseline(
    scores: dict[str, np.ndarray], values: dict[str, np.ndarray], recipe: Recipe, labels: LabelSpace
) -> Baseline:
    """Decide and measure each scored split, with thresholds tuned on validation by the rule of the recipe.

    Parameters
    ----------
    scores : dict of float [rows, labels]
        Probabilities, or scores with the decision boundary 0.5, by split.
    values : dict of float32 [rows, labels] or int64 [rows]
        Label values by split.
    recipe : Recipe
    labels : LabelSpace
    """
    marks = {split: multi_hot(values[split], len(labels.names)) for split in scores}
    tuning = Tuning.of(recipe.train)
    if "validation" in scores:
        thresholds = tune_thresholds(scores["validation"], marks["validation"], labels, tuning)
    else:
        thresholds = fixed_thresholds(len(labels.names), at_least_one=tuning.at_least_one)
    found = Baseline({}, {})
    for split, split_scores in scores.items():
        predicted = apply_thresholds(split_scores, thresholds, labels)
        metrics = evaluate_predictions(split_scores, values[split], predicted, labels.names, labels.binary)
        metrics["intervals"] = bootstrap_intervals(marks[split], predicted, binary=labels.binary)
        found.metrics[split], found.decisions[split] = metrics, predicted
    return found


def majority(texts: dict[str, list[str]], train_values: np.ndarray, labels: LabelSpace) -> dict[str, np.ndarray]:
    """Give every text the most frequent set of labels of the training split.

    Parameters
    ----------
    texts : dict of list of str
        The texts of each split.
    train_values : float32 [rows, labels] or int64 [rows]
        Label values of the training split.
    labels : LabelSpace

    Returns
    -------
    dict of float32 [rows, labels]
        Scores of each split except "train".
    """
    patterns, counts = np.unique(multi_hot(train_values, len(labels.names)), axis=0, return_counts=True)
    row = patterns[counts.argmax()].astype(np.float32)
    return {split: np.tile(row, (len(rows), 1)) for split, rows in texts.items() if split != "train"}


def tfidf_linear(texts: dict[str, list[str]], train_values: np.ndarray, labels: LabelSpace) -> dict[str, np.ndarray]:
    """Train a linear support vector machine per label on TF-IDF features of words and word pairs.

    Parameters
    ----------
    texts, train_values, labels
        See `majority`.

    Returns
    -------
    dict of float32 [rows, labels]
        Scores of each split except "train".

    Notes
    -----
    Joachims 1998, "Text Categorization with Support Vector Machines". The margin m becomes the score
    1 / (1 + exp(-m)), which keeps the order of texts and moves the decision boundary m = 0 to 0.5. A label that all
    training rows have, or none, gets the score 1 or 0.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.svm import LinearSVC

    if not any(text.split() for text in texts["train"]):
        return majority(texts, train_values, labels)
    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2, dtype=np.float32)
    try:
        features = vectorizer.fit_transform(texts["train"])
    except ValueError:
        # No word or word pair occurs in two texts.
        vectorizer.set_params(min_df=1, token_pattern=r"(?u)\S+")
        features = vectorizer.fit_transform(texts["train"])
    scored = {split: vectorizer.transform(rows) for split, rows in texts.items() if split != "train"}
    marks = multi_hot(train_values, len(labels.names))
    scores = {split: np.zeros((len(texts[split]), len(labels.names)), np.float32) for split in scored}
    for i in range(len(labels.names)):
        if marks[:, i].all() or not marks[:, i].any():
            for split_scores in scores.values():
                split_scores[:, i] = float(marks[0, i])
            continue
        classifier = LinearSVC(C=1.0, random_state=0).fit(features, marks[:, i])
        for split, split_scores in scores.items():
            split_scores[:, i] = sigmoid(classifier.decision_function(scored[split]))
    return scores


def read_splits(recipe: Recipe, labels: LabelSpace) -> tuple[dict[str, list[str]], dict[str, Values]]:
    """Texts and label values of each split of a recipe."""
    data = recipe.data
    texts, values = {}, {}
    for split, path in data.files().items():
        table = read_table(path, f"data.{SPLIT_KEYS[split]}", data)
        texts[split] = whole_texts(table, data)
        cells = {column: table[column][:] for column in labels.columns}
        values[split] = values_of(read_hard_labels(cells, list(range(len(table))), labels, path, data), labels)
    held = rows_of_split(recipe, "validation", labels)
    if held is not None:
        _keep(texts, values, "validation", held)
        _keep(texts, values, "train", kept_rows(held, len(texts["train"])))
    _keep(texts, values, "train", chosen_rows(values["train"], labels, data))
    return texts, values


def _keep(texts: dict[str, list[str]], values: dict[str, Values], split: str, rows: np.ndarray | None) -> None:
    """Keep some rows of a split; None keeps all."""
    if rows is not None:
        texts[split], values[split] = [texts[split][row] for row in rows], values[split][rows]
