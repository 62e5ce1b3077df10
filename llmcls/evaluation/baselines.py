"""Baselines: what a table of words and a linear model reach on the same splits, so that the cost of more is known."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from llmcls.common.files import read_json, write_json
from llmcls.common.logit import sigmoid
from llmcls.data.encoding import whole_texts
from llmcls.data.labels import LabelSpace, multi_hot, read_labels
from llmcls.data.tables import read_table
from llmcls.evaluation.bootstrap import bootstrap_intervals
from llmcls.evaluation.metrics import evaluate_predictions
from llmcls.evaluation.thresholds import Tuning, apply_thresholds, fixed_thresholds, tune_thresholds
from llmcls.recipe.schema import SPLIT_KEYS, Recipe

log = logging.getLogger(__name__)


# Within this, both take under a minute on one core: bytes of the training file, and bytes times labels.
QUICK_BYTES = 20_000_000
QUICK_WORK = 200_000_000


def cached_baselines(recipe: Recipe, labels: LabelSpace, path: Path) -> dict[str, Any] | None:
    """The result of `run_baselines`, read from ``path`` if it was made for the same recipe; else computed."""
    if recipe.exp.baselines is False:
        return None
    train = recipe.train
    wanted = [asdict(recipe.data), asdict(labels), asdict(Tuning.of(train))]
    key = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()
    if path.exists():
        saved = read_json(path)
        if saved["of"] == key:
            return saved["baselines"]
    found = run_baselines(recipe, labels)
    if found is not None:
        write_json(path, {"of": key, "baselines": found})
    return found


def run_baselines(recipe: Recipe, labels: LabelSpace) -> dict[str, Any] | None:
    """Majority, and TF-IDF with a linear model, measured as the recipe's own runs are.

    Returns
    -------
    Baseline to split to metrics, with "seconds"; None where they would take long and the recipe does not insist.
    """
    # From the file's size: a large one is not read into memory only to be left alone.
    size = Path(recipe.data.train_csv).stat().st_size
    if recipe.exp.baselines is None and (size > QUICK_BYTES or size * len(labels.names) > QUICK_WORK):
        log.info("baselines would take more than a minute on this set; exp.baselines=true runs them all the same")
        return None
    texts, values = _read(recipe, labels)
    result = {}
    for name, scorer in (("majority", majority), ("tfidf_linear", tfidf_linear)):
        began = time.perf_counter()
        result[name] = _measure(scorer(texts, values["train"], labels), values, recipe, labels)
        result[name]["seconds"] = time.perf_counter() - began
        for split in ("test", "validation"):
            if split in result[name]:
                shown = result[name][split]
                log.info(
                    "baseline %-13s %s micro-F1 %.4f  macro-F1 %.4f  (%.0f s)",
                    name, split, shown["f1_micro"], shown["f1_macro"], result[name]["seconds"],
                )  # fmt: skip
                break
    return result


def majority(texts: dict[str, list[str]], train: np.ndarray, labels: LabelSpace) -> dict[str, np.ndarray]:
    """Every text gets the commonest set of labels: split to scores, float32 [rows, labels]."""
    patterns, counts = np.unique(multi_hot(train, len(labels.names)), axis=0, return_counts=True)
    row = patterns[counts.argmax()].astype(np.float32)
    return {split: np.tile(row, (len(rows), 1)) for split, rows in texts.items() if split != "train"}


def tfidf_linear(texts: dict[str, list[str]], train: np.ndarray, labels: LabelSpace) -> dict[str, np.ndarray]:
    """Words and pairs of words weighted by TF-IDF, one linear support vector machine a label.

    Joachims 1998, "Text Categorization with Support Vector Machines". Its margin m is turned into the score
    1 / (1 + exp(-m)), which keeps the order and puts the machine's own decision at 0.5.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.svm import LinearSVC

    if not any(text.split() for text in texts["train"]):
        return majority(texts, train, labels)
    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2, dtype=np.float32)
    try:
        features = vectorizer.fit_transform(texts["train"])
    except ValueError:
        # No word occurs twice: too few texts for a vocabulary of repeated words.
        vectorizer.set_params(min_df=1, token_pattern=r"(?u)\S+")
        features = vectorizer.fit_transform(texts["train"])
    marks = multi_hot(train, len(labels.names))
    scores = {split: np.zeros((len(rows), len(labels.names)), np.float32) for split, rows in texts.items()}
    for i in range(len(labels.names)):
        if marks[:, i].all() or not marks[:, i].any():
            for found in scores.values():
                found[:, i] = float(marks[0, i])
            continue
        machine = LinearSVC(C=1.0, random_state=0).fit(features, marks[:, i])
        for split, found in scores.items():
            if split != "train":
                margins = machine.decision_function(vectorizer.transform(texts[split]))
                found[:, i] = sigmoid(margins)
    return {split: found for split, found in scores.items() if split != "train"}


def _measure(
    scores: dict[str, np.ndarray], values: dict[str, np.ndarray], recipe: Recipe, labels: LabelSpace
) -> dict[str, Any]:
    """Metrics of each scored split, with thresholds tuned as the recipe says."""
    marks = {split: multi_hot(values[split], len(labels.names)) for split in scores}
    tuning = Tuning.of(recipe.train)
    if "validation" in scores:
        thresholds = tune_thresholds(scores["validation"], marks["validation"], labels, tuning)
    else:
        thresholds = fixed_thresholds(len(labels.names), at_least_one=tuning.at_least_one)
    result: dict[str, Any] = {}
    for split, found in scores.items():
        predicted = apply_thresholds(found, thresholds, labels)
        metrics = evaluate_predictions(found, values[split], predicted, labels.names)
        metrics["intervals"] = bootstrap_intervals(marks[split], predicted)
        result[split] = metrics
    return result


def _read(recipe: Recipe, labels: LabelSpace) -> tuple[dict[str, list[str]], dict[str, np.ndarray]]:
    """Texts and label values of every split the recipe names."""
    data = recipe.data
    texts, values = {}, {}
    for split, path in data.files().items():
        table = read_table(path, f"data.{SPLIT_KEYS[split]}")
        texts[split] = whole_texts(table, data)
        cells = {column: table[column][:] for column in labels.columns}
        found = read_labels(cells, list(range(len(table))), labels, path)
        values[split] = np.array(found, np.float32 if labels.multi_label else np.int64)
    return texts, values
