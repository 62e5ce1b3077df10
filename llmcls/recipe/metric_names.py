"""The names of all metrics, whether more or less is better, and which of them matter first."""

from __future__ import annotations

AVERAGES = ("micro", "macro", "weighted", "samples")
# Metrics of the most probable labels of a text, for tasks with many labels: P@k, and P@k weighted by propensity.
AT_K = (1, 3, 5)
LARGEST_K = max(AT_K)
RANKED_METRICS = (*(f"precision_at_{k}" for k in AT_K), *(f"propensity_precision_at_{k}" for k in AT_K))
# What needs the probabilities of all labels of all texts, which are not kept where there are many.
WHOLE_METRICS = ("average_precision_micro", "average_precision_macro", "roc_auc_macro")
# Metrics of the second class of a binary task, the one that is looked for.
POSITIVE_METRICS = (
    "f1_positive", "average_precision_positive", "precision_positive", "recall_positive", "roc_auc_positive",
)  # fmt: skip
METRIC_NAMES = frozenset(
    ["loss", "accuracy", "hamming_loss", "average_precision_micro", "average_precision_macro", "roc_auc_macro"]
    + ["calibration_error"]
    + [f"{kind}_{average}" for kind in ("f1", "precision", "recall") for average in AVERAGES]
)


def metric_names(problem_type: str) -> frozenset[str]:
    """The metrics of a problem type: `METRIC_NAMES`, also `POSITIVE_METRICS` (binary) or `RANKED_METRICS`."""
    if problem_type == "multi_label_classification":
        return METRIC_NAMES.union(RANKED_METRICS)
    return METRIC_NAMES.union(POSITIVE_METRICS if problem_type == "binary_classification" else ())


def default_metric(problem_type: str) -> str:
    """The metric of choice of a recipe that names none."""
    return "f1_positive" if problem_type == "binary_classification" else "f1_micro"


def headline(problem_type: str) -> dict[str, str]:
    """The two metrics that are shown first, by name, and what they are called.

    Examples
    --------
    >>> headline("multi_label_classification")
    {'f1_micro': 'micro-F1', 'f1_macro': 'macro-F1'}
    """
    if problem_type == "binary_classification":
        return {"f1_positive": "F1 of the positive class", "average_precision_positive": "average precision"}
    return {"f1_micro": "micro-F1", "f1_macro": "macro-F1"}


def metric_direction(name: str) -> int:
    """+1 if a higher value is better, -1 if a lower one is."""
    return -1 if name in ("loss", "hamming_loss", "calibration_error") else 1


def in_words(name: str) -> str:
    """What a metric is called in a sentence.

    Examples
    --------
    >>> in_words("f1_micro"), in_words("recall_positive"), in_words("roc_auc_macro"), in_words("hamming_loss")
    ('micro-F1', 'recall of the positive class', 'macro-ROC AUC', 'Hamming loss')
    >>> in_words("precision_at_5"), in_words("propensity_precision_at_3")
    ('P@5', 'PSP@3')
    """
    kind, _, average = name.rpartition("_")
    if name in RANKED_METRICS:
        return f"{'PSP' if name.startswith('propensity') else 'P'}@{average}"
    kinds = {"f1": "F1", "roc_auc": "ROC AUC", "average_precision": "average precision"}
    if average == "positive":
        return f"{kinds.get(kind, kind)} of the positive class"
    if average in AVERAGES:
        return f"{average}-{kinds.get(kind, kind)}"
    return name.replace("_", " ").replace("hamming", "Hamming")
