"""Which evaluation during training is the best so far, and when a run does not improve any more.

An evaluation is measured with the decisions that the run would make if it ended there: thresholds of the recipe's rule,
tuned on this evaluation. With thresholds of 0.5, F1 of rare labels would stay 0 while a model warms up, and the least
trained model would be kept.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmcls.data.labels import LabelSpace, multi_hot
from llmcls.data.splits import Split
from llmcls.evaluation.metrics import to_probabilities
from llmcls.evaluation.objective import Average, Objective, measure
from llmcls.evaluation.scoring import evaluate_logits
from llmcls.evaluation.thresholds import apply_thresholds, fixed_thresholds
from llmcls.evaluation.top_metrics import decision_metrics, evaluate_top
from llmcls.evaluation.top_scores import TopScores, decide_top, shared_threshold
from llmcls.evaluation.tuning import Tuning, tune_thresholds
from llmcls.recipe.metric_names import metric_direction
from llmcls.recipe.schema import TrainSection
from llmcls.training.checkpoints import Progress
from llmcls.training.setup import TrainingSetup

log = logging.getLogger(__name__)

# So many evaluations with exactly the same value of the metric are worth a warning.
CONSTANT_EVALUATIONS = 3


@dataclass(frozen=True)
class Validation:
    """An evaluation during training.

    Attributes
    ----------
    metrics : dict
        The metrics that are a single number.
    rule : str
        The rule of the thresholds that decided.
    at_half : dict
        F1 with thresholds of 0.5, for comparison.
    """

    metrics: dict[str, Any]
    rule: str
    at_half: dict[str, float]


def validate(logits: np.ndarray, split: Split, labels: LabelSpace, train: TrainSection) -> Validation:
    """Measure scored validation rows with thresholds that are tuned on them.

    Parameters
    ----------
    logits : float32 [rows, labels]
    split : Split
    labels : LabelSpace
    train : TrainSection
        Says how thresholds are tuned.
    """
    values = split.known_labels
    probabilities, marks = to_probabilities(logits, labels.problem_type), multi_hot(values, len(labels.names))
    thresholds = tune_thresholds(probabilities, marks, labels, Tuning.of(train))
    metrics = evaluate_logits(logits, values, labels, thresholds).metrics
    half = fixed_thresholds(len(labels.names), at_least_one=train.at_least_one_label)
    plain = apply_thresholds(probabilities, half, labels)
    averages: tuple[Average, ...] = ("micro", "macro", "positive") if labels.binary else ("micro", "macro")
    at_half = {f"f1_{average}": measure(marks, plain, Objective(average)) for average in averages}
    scalars = {name: value for name, value in metrics.items() if not isinstance(value, dict | list)}
    return Validation(scalars, thresholds.rule, at_half)


def validate_top(setup: TrainingSetup, scores: TopScores, split: Split) -> Validation:
    """As `validate`, where there are many labels."""
    labels, true = setup.labels, split.known_labels.astype(bool)
    thresholds = shared_threshold(scores.probabilities, true, labels, Tuning.of(setup.recipe.train))
    metrics = evaluate_top(
        scores, true, decide_top(scores.probabilities, thresholds, labels), labels, setup.frequencies
    )
    plain = decision_metrics(true, decide_top(scores.probabilities, setup.thresholds, labels))
    at_half = {name: plain[name] for name in ("f1_micro", "f1_macro")}
    scalars = {name: value for name, value in metrics.items() if not isinstance(value, dict | list)}
    return Validation(scalars, thresholds.rule, at_half)


def judge(progress: Progress, name: str, metrics: dict[str, Any]) -> bool:
    """Whether an evaluation is the best so far; counts the ones since the best.

    Equal values of the metric are decided by the validation loss. So a metric that does not move yet neither keeps the
    least trained model nor stops the run while the loss falls.

    Parameters
    ----------
    progress : Progress
        Its ``best_value``, ``best_loss``, ``best_step`` and ``stale`` are updated.
    name : str
        The metric that selects the best model.
    metrics : dict
        With this metric and "loss".
    """
    value, loss = metrics[name], metrics["loss"]
    if progress.best_value is None:
        better = True
    else:
        gain = metric_direction(name) * (value - progress.best_value)
        better = gain > 0 or (gain == 0 and progress.best_loss is not None and loss < progress.best_loss)
    if better:
        progress.best_value, progress.best_loss, progress.best_step = value, loss, progress.step
    progress.stale = 0 if better else progress.stale + 1
    return better


def warn_if_constant(history: list[dict[str, Any]], name: str) -> None:
    """Say once that the metric has had the same value in the last evaluations.

    Parameters
    ----------
    history : list of dict
        Of the run, with the current evaluation.
    name : str
        The metric that selects the best model.
    """
    values = [entry["validation"][name] for entry in history if "validation" in entry]
    recent, before = values[-CONSTANT_EVALUATIONS:], values[:-CONSTANT_EVALUATIONS][-1:]
    other = (
        "average_precision_macro"
        if "average_precision_macro" in history[-1].get("validation", {})
        else "precision_at_5"
    )
    if len(recent) == CONSTANT_EVALUATIONS and len(set(recent)) == 1 and before != recent[:1]:
        log.warning(
            "%s was %.4f in the last %d evaluations, so the validation loss decides which model is best; if it stays "
            "so, set train.metric_for_best_model=%s or train.thresholds=auto",
            name, recent[-1], CONSTANT_EVALUATIONS, other,
        )  # fmt: skip
