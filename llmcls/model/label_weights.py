"""Weights of labels in the loss: by their rarity, or given by hand."""

from __future__ import annotations

import numpy as np
import torch

from llmcls.common.nearest import nearest
from llmcls.data.labels import LabelSpace
from llmcls.recipe.schema import Recipe, TrainSection

# Names in an error message.
SHOWN = 5


def label_weights(train: TrainSection, labels: LabelSpace, positives: np.ndarray, rows: int) -> torch.Tensor | None:
    """The weights of a recipe: on the positives of each label, or on each class.

    Parameters
    ----------
    train : TrainSection
    labels : LabelSpace
    positives : int [labels]
        Training rows of each label.
    rows : int
        Training rows.

    Returns
    -------
    float32 [labels] or None
        None if the recipe gives no weights. A label that it does not name has weight 1.
    """
    if train.pos_weight is None:
        return None
    if train.pos_weight == "balanced":
        make = balanced_pos_weight if labels.multi_label else balanced_class_weight
        return torch.from_numpy(make(positives, rows, train.pos_weight_cap))
    return torch.tensor([train.pos_weight.get(name, 1.0) for name in labels.names], dtype=torch.float32)


def check_label_weights(recipe: Recipe, labels: LabelSpace) -> None:
    """Check that the labels that a recipe gives weights to are there.

    Raises
    ------
    UserError
        With the first name that is not a label, and the most similar label.
    """
    given = recipe.train.pos_weight
    unknown = [name for name in given if name not in labels.names] if isinstance(given, dict) else []
    if unknown:
        near = nearest(unknown[0], labels.names)
        more = f", and {len(labels.names) - SHOWN} more" if len(labels.names) > SHOWN else ""
        hint = f"did you mean {near!r}?" if near else f"the labels are {', '.join(labels.names[:SHOWN])}{more}"
        raise recipe.error("train.pos_weight", f"names {unknown[0]!r}, which is not a label; {hint}")


def mean_weight(values: np.ndarray, weight: torch.Tensor) -> float:
    """The mean weight of rows with one class each, or with probabilities of classes.

    A loss that is divided by it is the weighted mean over the rows, as `torch.nn.CrossEntropyLoss` has it: a class with
    weight 2 counts as if each of its rows were there twice, and weights that are all 2 change nothing.

    Parameters
    ----------
    values : int64 [rows] or float32 [rows, classes]
        Class indices, or probabilities.
    weight : float32 [classes]

    Returns
    -------
    float

    Examples
    --------
    >>> mean_weight(np.array([0, 0, 1]), torch.tensor([1.0, 4.0]))
    2.0
    """
    weights = weight.double().numpy()
    return float(np.mean(values @ weights if values.ndim == 2 else weights[values]))


def balanced_pos_weight(positives: np.ndarray, rows: int, cap: float) -> np.ndarray:
    """Weights for the positives of rare labels.

    Parameters
    ----------
    positives : int [labels]
        Rows of each label.
    rows : int
        All rows.
    cap : float
        Upper limit of a weight.

    Returns
    -------
    float32 [labels]
        negatives / positives of each label, as the documentation of `BCEWithLogitsLoss` recommends, at most ``cap``.

    Examples
    --------
    >>> balanced_pos_weight(np.array([50, 10, 1]), rows=100, cap=10.0)
    array([ 1.,  9., 10.], dtype=float32)
    """
    positives = np.maximum(positives, 1)
    return np.minimum((rows - positives) / positives, cap).astype(np.float32)


def balanced_class_weight(counts: np.ndarray, rows: int, cap: float) -> np.ndarray:
    """Weights for rare classes.

    Parameters
    ----------
    counts : int [classes]
        Rows of each class.
    rows : int
        All rows.
    cap : float
        Upper limit of a weight.

    Returns
    -------
    float32 [classes]
        rows / (classes x count), scikit-learn's "balanced" (King & Zeng 2001), at most ``cap``.

    Examples
    --------
    >>> balanced_class_weight(np.array([60, 30, 10]), rows=100, cap=3.0)
    array([0.5555556, 1.1111112, 3.       ], dtype=float32)
    """
    return np.minimum(rows / (len(counts) * np.maximum(counts, 1)), cap).astype(np.float32)
