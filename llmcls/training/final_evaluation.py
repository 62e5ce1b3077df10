"""The end of a run: the best model scores every split, decisions are tuned on validation, and all is measured."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmcls.common.heartbeat import beat
from llmcls.data.labels import LabelSpace, count_positives, multi_hot
from llmcls.data.splits import Split, some_rows
from llmcls.evaluation.calibration import Calibration, calibrated, fit_calibration
from llmcls.evaluation.metrics import headline_text
from llmcls.evaluation.outcome import Evaluation, uncertainty
from llmcls.evaluation.rule_comparison import compare_rules
from llmcls.evaluation.scoring import Scorer, evaluate_logits, score_split
from llmcls.evaluation.thresholds import Thresholds, fixed_thresholds
from llmcls.evaluation.top_metrics import decision_metrics, evaluate_top, ranked_text, top_uncertainty
from llmcls.evaluation.top_scores import decide_top, shared_threshold
from llmcls.evaluation.top_scoring import score_top
from llmcls.evaluation.tuning import Tuning, tune_thresholds
from llmcls.recipe.defaults import selection_metric
from llmcls.results.predictions import write_predictions
from llmcls.training.checkpoints import Progress
from llmcls.training.setup import TrainingSetup
from llmcls.training.tracking import duration

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinalEvaluation:
    """The outcome of a run.

    Attributes
    ----------
    metrics : dict
        The content of metrics.json.
    thresholds : Thresholds
    calibration : Calibration
    """

    metrics: dict[str, Any]
    thresholds: Thresholds
    calibration: Calibration


def evaluate_run(setup: TrainingSetup, scorer: Scorer, test_split: Split | None, progress: Progress) -> FinalEvaluation:
    """Evaluate the best model on every split and write the predictions.

    Parameters
    ----------
    setup : TrainingSetup
    scorer : Scorer
        Of the best model.
    test_split : Split, optional
    progress : Progress
        Of the finished training.
    """
    seconds = max(progress.seconds, 1e-9)
    metrics: dict[str, Any] = {
        "seed": setup.seed,
        "steps": progress.step,
        "best_step": progress.best_step,
        "epochs": progress.epoch,
        "training": {
            "seconds": progress.seconds,
            "samples_per_second": progress.samples / seconds,
            "tokens_per_second": progress.tokens / seconds,
            "loss": progress.history[-1]["train_loss"],
            "first_loss": progress.history[0]["train_loss"],
        },
        "labels": setup.labels.names,
        "history": progress.history,
    }
    named = {
        "train": training_sample(setup.train_split, setup.recipe.train.train_metrics_rows, setup.seed),
        "validation": setup.validation_split,
        "test": test_split,
    }
    splits = {name: split for name, split in named.items() if split is not None}
    whole = named | {"train": setup.train_split}
    metrics["data"] = {name: row_counts(split, setup.labels) for name, split in whole.items() if split is not None}
    if setup.labels.many:
        thresholds = _measure_many(setup, scorer, splits, metrics, progress.step)
        _log_time(setup, progress)
        return FinalEvaluation(metrics, thresholds, Calibration())
    logits = {name: score_split(scorer, split) for name, split in splits.items()}
    beat("tuning thresholds and calibration")
    thresholds, calibration = _decide(setup, logits.get("validation"))
    metrics |= thresholds.described()
    half = fixed_thresholds(len(setup.labels.names))
    scored = {}
    for name, split in splits.items():
        beat(f"measuring {name}")
        values = split.known_labels
        evaluation = evaluate_logits(logits[name], values, setup.labels, thresholds, calibration)
        metrics[name] = evaluation.metrics
        setup.record(progress.step, f"final_{name}", scalars(evaluation.metrics))
        shown = headline_text(evaluation.metrics, setup.labels.problem_type)
        log.info("seed %d  %-10s  %s  loss %.4f", setup.seed, name, shown, evaluation.metrics["loss"])
        if name == "train":
            continue
        marks = multi_hot(values, len(setup.labels.names))
        evaluation.metrics |= uncertainty(marks, evaluation.predicted, setup.labels)
        plain = evaluate_logits(logits[name], values, setup.labels, half, calibration)
        metrics.setdefault("at_half", {})[name] = scalars(plain.metrics)
        scored[name] = evaluation.probabilities, marks
        if setup.accelerator.is_main_process:
            write_predictions(setup.folder.predictions(name), split, evaluation, setup.labels)
    beat("comparing rules of thresholds")
    if setup.accelerator.is_main_process:
        rules = compare_rules(scored, setup.labels, Tuning.of(setup.recipe.train))
        metrics["threshold_rules"] = rules
        _warn_if_half_is_better(rules, thresholds.rule, selection_metric(setup.recipe))
    if thresholds.reason:
        log.info("seed %d  thresholds: %s  (%s)", setup.seed, thresholds.rule, thresholds.reason)
    _log_time(setup, progress)
    return FinalEvaluation(metrics, thresholds, calibration)


def _measure_many(
    setup: TrainingSetup, scorer: Scorer, splits: dict[str, Split], metrics: dict[str, Any], step: int
) -> Thresholds:
    """The part of `evaluate_run` that scores, decides and measures, where there are many labels.

    Parameters
    ----------
    setup, scorer
        As for `evaluate_run`.
    splits : dict of Split
    metrics : dict
        Gets the metrics of each split.
    step : int

    Returns
    -------
    Thresholds
        One for all labels, tuned on validation.
    """
    labels, train, thresholds = setup.labels, setup.recipe.train, setup.thresholds
    if "validation" in splits:
        scores = {"validation": score_top(scorer, splits["validation"], train.top_labels)}
        true = splits["validation"].known_labels.astype(bool)
        thresholds = shared_threshold(scores["validation"].probabilities, true, labels, Tuning.of(train))
    else:
        scores = {}
    metrics |= thresholds.described()
    for name, split in splits.items():
        beat(f"measuring {name}")
        found = scores.pop(name, None) or score_top(scorer, split, train.top_labels)
        true = split.known_labels.astype(bool)
        predicted = decide_top(found.probabilities, thresholds, labels)
        metrics[name] = evaluate_top(found, true, predicted, labels, setup.frequencies)
        setup.record(step, f"final_{name}", scalars(metrics[name]))
        log.info(
            "seed %d  %-10s  %s  %s  loss %.4f", setup.seed, name, headline_text(metrics[name], labels.problem_type),
            ranked_text(metrics[name]), metrics[name]["loss"],
        )  # fmt: skip
        if name == "train":
            continue
        plain = decide_top(found.probabilities, fixed_thresholds(len(labels.names)), labels)
        metrics.setdefault("at_half", {})[name] = decision_metrics(true, plain)
        # The intervals are the same on every rank, and take a minute on large splits.
        if setup.accelerator.is_main_process:
            metrics[name] |= top_uncertainty(true, predicted, labels)
            evaluation = Evaluation(found.probabilities, predicted, metrics[name])
            write_predictions(setup.folder.predictions(name), split, evaluation, labels)
    log.info("seed %d  threshold %.4f  (%s)", setup.seed, thresholds.values[0], thresholds.reason or "fixed")
    return thresholds


def _log_time(setup: TrainingSetup, progress: Progress) -> None:
    speed = progress.samples / max(progress.seconds, 1e-9)
    log.info("seed %d  trained in %s, %.1f samples/s", setup.seed, duration(progress.seconds), speed)


def _warn_if_half_is_better(rules: dict[str, dict[str, Any]], rule: str, metric: str) -> None:
    """Say that the rule that a recipe insists on is worse than 0.5; `compare_rules` has compared them."""
    found = {name: rules.get(name, {}).get("validation", {}).get(metric) for name in (rule, "fixed")}
    if found[rule] is not None and found[rule] < found["fixed"]:
        log.warning(
            "%s is %.4f with %s thresholds and %.4f at 0.5 (cross-validated on validation); train.thresholds=auto "
            "would keep what is better",
            metric, found[rule], rule, found["fixed"],
        )  # fmt: skip


def scalars(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics that are a single number."""
    return {name: value for name, value in metrics.items() if not isinstance(value, dict | list)}


def row_counts(split: Split, labels: LabelSpace) -> dict[str, Any]:
    """The rows of a split, and how many of them have each label."""
    counts = count_positives(split.known_labels, labels).tolist()
    return {"rows": len(split), "labels": dict(zip(labels.names, counts, strict=True))}


def training_sample(train_split: Split, rows: int, seed: int) -> Split | None:
    """Up to ``rows`` training rows, drawn with the seed: enough to see over-fitting. None for no rows."""
    if rows == 0:
        return None
    return some_rows(train_split, rows, seed)


def _decide(setup: TrainingSetup, logits: np.ndarray | None) -> tuple[Thresholds, Calibration]:
    """Fit calibration and thresholds on validation.

    Parameters
    ----------
    setup : TrainingSetup
    logits : float32 [rows, labels], optional
        Of the validation split; None if there is none, which leaves 0.5 and no calibration.
    """
    if logits is None or setup.validation_split is None:
        return setup.thresholds, Calibration()
    train, values, labels = setup.recipe.train, setup.validation_split.known_labels, setup.labels
    calibration = fit_calibration(train.calibration, logits, values, labels)
    probabilities = calibrated(logits, calibration, labels)
    marks = multi_hot(values, len(labels.names))
    return tune_thresholds(probabilities, marks, labels, Tuning.of(train)), calibration
