"""The rules by which runs decide, and what runs would decide by one and the same rule.

Two models that are compared must decide alike: with other thresholds, the same probabilities give another F1.
"""

from __future__ import annotations

from dataclasses import replace

from llmcls.data.labels import LabelSpace
from llmcls.evaluation.bootstrap import Marks
from llmcls.evaluation.thresholds import Thresholds, apply_thresholds, fixed_thresholds, load_thresholds
from llmcls.evaluation.top_scores import decide_top, shared_objective, shared_threshold
from llmcls.evaluation.tuning import Tuning, tune_thresholds
from llmcls.recipe.load import load_recipe
from llmcls.results.predictions import Predictions, read_predictions
from llmcls.results.run_folder import RunFolder


def rule_of(runs: list[RunFolder], labels: LabelSpace) -> str:
    """How some runs decide, in words.

    Parameters
    ----------
    runs : list of RunFolder
    labels : LabelSpace

    Returns
    -------
    str
        Such as "joint for f1_micro" or "0.5"; of runs that differ, each rule once, in any order of the runs. For
        classes, "most probable class".
    """
    if not (labels.multi_label or labels.binary):
        return "most probable class"
    found = [_in_words(load_thresholds(run.thresholds, labels.names)) for run in runs]
    return " / ".join(sorted(set(found)))


def _in_words(thresholds: Thresholds) -> str:
    """A rule, what it is tuned for, and whether a text always gets a label."""
    values = set(thresholds.values)
    words = thresholds.rule.replace("_", " ")
    if thresholds.metric:
        words += f" for {thresholds.metric}"
    elif len(values) == 1:
        words = f"{values.pop():g}"
    return f"{words}, at least one label" if thresholds.at_least_one else words


def same_rule(runs: list[RunFolder], labels: LabelSpace) -> tuple[str, Tuning | None]:
    """A rule that all runs can decide by: that of the recipe of the first one.

    Returns
    -------
    str
        The rule in words.
    Tuning or None
        How to tune it on the validation rows of each run. None for 0.5, which is taken if the recipe wants it, or if a
        run has no validation predictions.
    """
    tuning = Tuning.of(load_recipe(runs[0].recipe).train)
    if tuning.rule == "fixed" or not all(run.predictions("validation").is_file() for run in runs):
        return "0.5", None
    if labels.many:
        return f"global for {shared_objective(tuning, labels).name}", tuning
    # "auto" could come to another rule for each run.
    plan = tuning.plan(labels)
    return f"{plan.rule.replace('_', ' ')} for {plan.objective.name}", replace(tuning, rule=plan.rule)


def decide_by(run: RunFolder, predictions: Predictions, labels: LabelSpace, tuning: Tuning | None) -> Marks:
    """The decisions of a run by a rule from `same_rule`, bool [rows, labels].

    Parameters
    ----------
    run : RunFolder
    predictions : Predictions
        The rows to decide.
    labels : LabelSpace
    tuning : Tuning, optional
    """
    thresholds = fixed_thresholds(len(labels.names))
    if labels.many:
        if tuning is not None:
            known = read_predictions(run.predictions("validation"), labels)
            thresholds = shared_threshold(known.probabilities, known.true_marks(labels), labels, tuning)
        return decide_top(predictions.probabilities, thresholds, labels)
    if tuning is not None:
        known = read_predictions(run.predictions("validation"), labels)
        thresholds = tune_thresholds(known.probabilities, known.true_marks(labels), labels, tuning)
    return apply_thresholds(predictions.probabilities, thresholds, labels)
