"""The end of a run: the best model scored on every split, its decisions tuned on validation, everything measured."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np

from llmcls.calibration import calibrated, fit_calibration
from llmcls.checkpoints import Progress
from llmcls.data import Split
from llmcls.evaluate import Scorer, evaluate_logits, score_split, uncertainty, write_predictions
from llmcls.labels import as_marks
from llmcls.loop import Run
from llmcls.thresholds import Tuning, fixed_thresholds, tune_thresholds
from llmcls.tracking import duration

log = logging.getLogger(__name__)


def final_metrics(run: Run, scorer: Scorer, test: Split | None, progress: Progress) -> dict[str, Any]:
    """Evaluate the best model on every split, write the predictions, and return the run's metrics."""
    speed = {
        "seconds": progress.seconds,
        "samples_per_second": progress.samples / max(progress.seconds, 1e-9),
        "tokens_per_second": progress.tokens / max(progress.seconds, 1e-9),
        "loss": progress.history[-1]["train_loss"],
        "first_loss": progress.history[0]["train_loss"],
    }
    result: dict[str, Any] = {
        "seed": run.seed, "steps": progress.step, "best_step": progress.best_step,
        "epochs": progress.epoch, "training": speed, "labels": run.labels.names,
        "history": progress.history,
    }  # fmt: skip
    train = run.recipe.train
    splits = {
        "train": training_sample(run.train, train.train_metrics_rows, run.seed),
        "validation": run.validation,
        "test": test,
    }
    logits = {name: score_split(scorer, split) for name, split in splits.items() if split is not None}
    decide(run, logits.get("validation"))
    for name, scored in logits.items():
        split = splits[name]
        evaluation = evaluate_logits(scored, split.labels, run.labels, run.thresholds, run.calibration)
        result[name] = evaluation.metrics
        run.record(progress.step, f"final_{name}", scalars(evaluation.metrics))
        log.info(
            "seed %d  %-10s  micro-F1 %.4f  macro-F1 %.4f  loss %.4f",
            run.seed, name, evaluation.metrics["f1_micro"], evaluation.metrics["f1_macro"], evaluation.metrics["loss"],
        )  # fmt: skip
        if name == "train":
            continue
        evaluation.metrics |= uncertainty(as_marks(split.labels, run.labels), evaluation.predicted, run.labels)
        half = fixed_thresholds(len(run.labels.names))
        plain = evaluate_logits(scored, split.labels, run.labels, half, run.calibration)
        result.setdefault("at_half", {})[name] = scalars(plain.metrics)
        if run.accelerator.is_main_process:
            write_predictions(run.folder / f"predictions_{name}.jsonl", split, evaluation, run.labels)
    log.info(
        "seed %d  trained in %s, %.1f samples/s", run.seed, duration(progress.seconds), speed["samples_per_second"]
    )
    return result


def decide(run: Run, logits: np.ndarray | None) -> None:
    """Fit calibration and thresholds on the validation rows' ``logits``, float32 [rows, labels]; None: keep 0.5."""
    if logits is None:
        return
    train, values = run.recipe.train, run.validation.labels
    run.calibration = fit_calibration(train.calibration, logits, values, run.labels)
    tuning = Tuning(train.thresholds, train.threshold_metric, train.threshold_shrinkage, train.at_least_one_label)
    probabilities = calibrated(logits, run.calibration, run.labels)
    run.thresholds = tune_thresholds(probabilities, as_marks(values, run.labels), run.labels, tuning)


def scalars(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics that are one number."""
    return {name: value for name, value in metrics.items() if not isinstance(value, dict | list)}


def training_sample(train: Split, rows: int, seed: int) -> Split | None:
    """Up to ``rows`` rows of the training split, drawn with the seed: enough to see over-fitting."""
    if rows == 0:
        return None
    if rows >= len(train):
        return train
    chosen = np.sort(np.random.default_rng(seed).choice(len(train), rows, replace=False))
    tokens = [train.tokens[row] for row in chosen]
    return replace(train, tokens=tokens, lengths=train.lengths[chosen], labels=train.labels[chosen])
