"""The linear probe: a linear classifier on the states that a frozen model gives to its head.

It is a baseline, and where fine-tuning can start the head from (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained
Features and Underperform Out-of-Distribution"). Besides the texts, it is fitted on the words of each label, as one
more text that has the label. So a label without any text starts somewhere, and with few texts per label it is better.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch

from llmcls.common.logit import logit
from llmcls.data.labels import LabelSpace, add_ancestors, multi_hot
from llmcls.evaluation.calibration import fit_calibration
from llmcls.model.losses import build_loss

# Weight of the covariance within labels; the rest is the identity. Of 0.1, 0.3, 0.5, 0.6, 0.8 and 0 (which only scales
# every feature), 0.5 is best or nearly so for the states of SmolLM2-135M on 10 texts for each of the 77 labels of
# banking77, with every pooling: accuracy 0.69 instead of 0.64 for mean pooling.
WHITENING = 0.5
# Candidates for the inverse strength of the penalty, with features of mean square 1 over all of them together.
STRENGTHS = (10.0, 100.0, 1000.0)
# The candidates are compared on held-out parts of so many rows.
SELECTION_ROWS, SELECTION_SPLITS, HELD_OUT = 1500, 3, 0.25
MAX_ITERATIONS, PRECISION = 200, 1e-5


@dataclass(frozen=True)
class Probe:
    """A linear head.

    Attributes
    ----------
    weight : float32 [labels, hidden]
    bias : float32 [labels], optional
        None for a head that has none, as the heads of decoders.
    """

    weight: np.ndarray
    bias: np.ndarray | None = None

    def logits(self, states: np.ndarray) -> np.ndarray:
        """Logits of states [rows, hidden], float32 [rows, labels]."""
        found: np.ndarray = states @ self.weight.T
        return found if self.bias is None else found + self.bias


@dataclass(frozen=True)
class Evidence:
    """What a probe is fitted on.

    Attributes
    ----------
    states : float32 [rows, hidden]
        Of the training texts.
    values : float32 [rows, labels] or int64 [rows]
        Their label values, as in a `Split`.
    label_states : float32 [labels, hidden]
        Of the words of each label.
    """

    states: np.ndarray
    values: np.ndarray
    label_states: np.ndarray

    def part(self, rows: np.ndarray) -> Evidence:
        """The same for some of the rows."""
        return Evidence(self.states[rows], self.values[rows], self.label_states)


def fit_probe(evidence: Evidence, labels: LabelSpace, has_bias: bool) -> Probe:
    """Fit a linear probe.

    Parameters
    ----------
    evidence : Evidence
    labels : LabelSpace
    has_bias : bool
        Whether the head has one.

    Returns
    -------
    Probe

    Notes
    -----
    Logistic regression, one for all classes or one per label, on features that are partly whitened by the covariance
    within labels, as in linear discriminant analysis with shrinkage (Hastie et al. 2009, section 4.3.1). The strength
    of the penalty is the one with the lowest cross-entropy on held-out rows, after the best temperature, which also
    scales the result. Without a bias, the mean of the states, which is far from zero, plays its part.
    """
    strength, temperature = _select(evidence, labels, has_bias)
    return _Fit(evidence, labels, has_bias).probe(strength, temperature)


def label_probe(evidence: Evidence, labels: LabelSpace, has_bias: bool) -> Probe:
    """A probe of the words of the labels alone; the training texts only set its scale. See `fit_probe`."""
    fit = _Fit(evidence, labels, has_bias, with_texts=False)
    (raw,) = fit.solve(STRENGTHS[1:2])
    marks = multi_hot(evidence.values, len(labels.names))
    found = fit.probe_of(raw)
    logits = found.logits(evidence.states)
    temperature = fit_calibration("temperature", logits - logits.mean(0), evidence.values, labels).temperature
    # Start where every text has a label with the label's frequency.
    frequency = (marks.sum(0) + 1) / (len(marks) + 2)
    level = logit(frequency) if labels.multi_label else np.log(frequency)
    return fit.probe_of(raw / temperature, level - logits.mean(0) / temperature)


def _select(evidence: Evidence, labels: LabelSpace, has_bias: bool) -> tuple[float, float]:
    """The best of `STRENGTHS`, and the temperature that its logits need."""
    from sklearn.model_selection import ShuffleSplit

    rows = len(evidence.states)
    if rows * HELD_OUT < 2:
        return STRENGTHS[1], 1.0
    if rows > SELECTION_ROWS:
        evidence = evidence.part(np.sort(np.random.default_rng(0).choice(rows, SELECTION_ROWS, replace=False)))
    logits: list[list[np.ndarray]] = [[] for _ in STRENGTHS]
    values = []
    for fitted, held_out in ShuffleSplit(SELECTION_SPLITS, test_size=HELD_OUT, random_state=0).split(evidence.states):
        fit, rest = _Fit(evidence.part(fitted), labels, has_bias), evidence.part(held_out)
        values.append(rest.values)
        for found, raw in zip(logits, fit.solve(STRENGTHS), strict=True):
            found.append(fit.probe_of(raw).logits(rest.states))
    true, loss = np.concatenate(values), build_loss(labels.problem_type)
    best = (np.inf, STRENGTHS[1], 1.0)
    for strength, parts in zip(STRENGTHS, logits, strict=True):
        joined = np.concatenate(parts)
        temperature = fit_calibration("temperature", joined, true, labels).temperature
        scaled = torch.from_numpy((joined / temperature).astype(np.float32))
        best = min(best, (float(loss(scaled, torch.from_numpy(true)).double().mean()), strength, temperature))
    return best[1:]


class _Fit:
    """The features of some evidence, and the way back from weights of features to weights of states.

    Features are ``(states - center) @ map``.
    """

    def __init__(self, evidence: Evidence, labels: LabelSpace, has_bias: bool, with_texts: bool = True) -> None:
        self.labels, self.has_bias = labels, has_bias
        states, count = evidence.states, len(labels.names)
        mean, marks = states.mean(axis=0), multi_hot(evidence.values, count)
        self.center = mean if has_bias else np.zeros_like(mean)
        self.map = _whitening(states - mean, marks)
        # Words are another kind of text than the texts, so their states are moved to the mean of the texts'.
        words = evidence.label_states - evidence.label_states.mean(axis=0) + mean
        own = add_ancestors(np.eye(count, dtype=bool), labels)
        self.features, self.marks = self._features(words), own
        if with_texts:
            self.features = np.concatenate([self.features, self._features(states)])
            self.marks = np.concatenate([own, marks])
        # A direction in which every text has nearly the same feature, 1: it does what a bias does.
        typical = self._features(mean[None])[0]
        self.constant = typical / max(float(typical @ typical), 1e-12)

    def _features(self, states: np.ndarray) -> np.ndarray:
        found: np.ndarray = (states - self.center) @ self.map
        return found

    def solve(self, strengths: tuple[float, ...]) -> list[np.ndarray]:
        """The solution for each strength: weights of features and, in the last column, the bias."""
        if self.labels.multi_label:
            columns = [self._logistic(self.marks[:, i].astype(int), strengths) for i in range(self.marks.shape[1])]
            return [np.concatenate(each) for each in zip(*columns, strict=True)]
        found = self._logistic(self.marks.argmax(axis=1), strengths)
        # For two classes there is one row, for the second class against the first.
        return [np.concatenate([-raw / 2, raw / 2]) if len(raw) == 1 else raw for raw in found]

    def _logistic(self, classes: np.ndarray, strengths: tuple[float, ...]) -> list[np.ndarray]:
        """Logistic regression for each strength, from weak to strong, each starting from the one before."""
        from sklearn.linear_model import LogisticRegression

        if (classes == classes[0]).all():
            # Nothing to separate: every text has the label, or none.
            return [np.zeros((1, self.features.shape[1] + 1), dtype=np.float32) for _ in strengths]
        model = LogisticRegression(
            warm_start=True, fit_intercept=self.has_bias, tol=PRECISION, max_iter=MAX_ITERATIONS, random_state=0
        )
        found = []
        with warnings.catch_warnings():
            # A few iterations more would not matter to a start.
            warnings.simplefilter("ignore")
            for strength in strengths:
                model.set_params(C=strength).fit(self.features, classes)
                bias = np.broadcast_to(model.intercept_, len(model.coef_))
                found.append(np.column_stack([model.coef_, bias]).astype(np.float32))
        return found

    def probe(self, strength: float, temperature: float) -> Probe:
        """The probe of one strength, with logits divided by a temperature."""
        (raw,) = self.solve((strength,))
        return self.probe_of(raw / temperature)

    def probe_of(self, raw: np.ndarray, level: np.ndarray | None = None) -> Probe:
        """The probe of a solution of `solve`; ``level`` [labels] is added to the logits."""
        weights, bias = raw[:, :-1], raw[:, -1]
        if level is not None and self.has_bias:
            bias = bias + level
        elif level is not None:
            weights = weights + level[:, None] * self.constant
        weight = (weights @ self.map.T).astype(np.float32)
        return Probe(weight, (bias - weight @ self.center).astype(np.float32) if self.has_bias else None)


def _whitening(centered: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """The map from centered states [rows, hidden] to features of mean square 1 in total: float32 [hidden, hidden].

    It scales each feature by its deviation, and then goes a part of the way to uncorrelated features of equal variance
    within labels.
    """
    from scipy.linalg import solve_triangular

    hidden = centered.shape[1]
    deviation = centered.std(axis=0)
    deviation = np.where(deviation > 1e-6 * deviation.max(initial=0), deviation, 1.0)
    scaled = centered / deviation
    # What the labels do not explain, by ridge regression on them.
    on = marks.astype(np.float32)
    explained = np.linalg.solve(on.T @ on + np.eye(on.shape[1], dtype=np.float32), on.T @ scaled)
    rest = scaled - on @ explained
    covariance = (rest.T @ rest).astype(np.float64)
    total = float(np.trace(covariance))
    mixed = (1 - WHITENING) * np.eye(hidden)
    if total > 0:
        mixed += WHITENING * hidden / total * covariance
    # For mixed = L L^T, the features are L^-1 times the scaled states.
    inverse = solve_triangular(np.linalg.cholesky(mixed), np.eye(hidden), lower=True)
    return (inverse.T / deviation[:, None] / np.sqrt(hidden)).astype(np.float32)
