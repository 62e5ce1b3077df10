from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from llmcls.data.labels import LabelSpace
from llmcls.evaluation.probe import Evidence, Probe, fit_probe, label_probe

HIDDEN = 24
NAMES = list("abcd")
SINGLE = LabelSpace(NAMES, ["class"], "single_label_classification", NAMES)
MULTI = LabelSpace(NAMES, NAMES, "multi_label_classification")


class States:
    """States as those of a model: far from zero, with large differences that have nothing to do with the labels."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        fixed = np.random.default_rng(99)
        self.mean = fixed.normal(5, 3, HIDDEN)
        self.directions = fixed.normal(size=(4, HIDDEN))
        self.nuisance = fixed.normal(size=(3, HIDDEN)) * 4

    def of(self, marks: np.ndarray) -> np.ndarray:
        noise = self.rng.normal(size=(len(marks), 3)) @ self.nuisance + self.rng.normal(size=(len(marks), HIDDEN))
        return (self.mean + marks @ self.directions + noise).astype(np.float32)

    def words(self) -> np.ndarray:
        """The words of the labels: somewhere else, but in the same directions."""
        return (self.of(np.eye(4)) - 3 * self.mean / 5).astype(np.float32)


def classes(rows: int, seed: int = 0, count: int = 4) -> tuple[Evidence, np.ndarray]:
    states = States(seed)
    values = states.rng.integers(0, count, rows)
    return Evidence(states.of(np.eye(4)[values]), values, states.words()), values


def loss(probe: Probe, states: np.ndarray, values: np.ndarray) -> float:
    return float(-log_softmax(probe.logits(states), axis=1)[np.arange(len(values)), values].mean())


@pytest.mark.parametrize("has_bias", [False, True])
def test_it_finds_the_classes_with_and_without_a_bias(has_bias: bool) -> None:
    evidence, _ = classes(400)
    test, true = classes(400, seed=1)
    probe = fit_probe(evidence, SINGLE, has_bias)
    assert (probe.bias is None) is not has_bias
    assert probe.weight.dtype == np.float32
    assert (probe.logits(test.states).argmax(axis=1) == true).mean() > 0.9
    assert loss(probe, test.states, true) < 0.4


def test_the_same_texts_give_the_same_bits() -> None:
    first, second = (fit_probe(classes(60)[0], SINGLE, False).weight for _ in range(2))
    assert np.array_equal(first, second)


def test_it_is_better_than_logistic_regression_on_scaled_states_where_texts_differ_in_other_ways() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    evidence, values = classes(40)
    test, true = classes(400, seed=1)
    scaler = StandardScaler().fit(evidence.states)
    plain = LogisticRegression().fit(scaler.transform(evidence.states), values)
    found = fit_probe(evidence, SINGLE, False).logits(test.states).argmax(axis=1)
    assert (found == true).mean() > (plain.predict(scaler.transform(test.states)) == true).mean() + 0.05


def test_a_class_without_a_text_is_known_by_its_words() -> None:
    evidence, _ = classes(300, count=3)
    test, true = classes(400, seed=1)
    logits = fit_probe(evidence, SINGLE, False).logits(test.states)
    fourth = logits[:, 3]
    assert fourth[true == 3].mean() > fourth[true != 3].mean() + 1


def test_words_alone_are_better_than_chance_and_never_far_from_it() -> None:
    evidence, values = classes(300)
    probe = label_probe(evidence, SINGLE, False)
    assert (probe.logits(evidence.states).argmax(axis=1) == values).mean() > 0.35
    nonsense = Evidence(evidence.states, values, evidence.label_states[::-1].copy())
    assert loss(label_probe(nonsense, SINGLE, False), evidence.states, values) < np.log(4) + 0.1


@pytest.mark.parametrize("has_bias", [False, True])
def test_labels_overlap_and_are_as_frequent_as_in_the_texts(has_bias: bool) -> None:
    states = States()
    marks = states.rng.random((500, 4)) < (0.5, 0.3, 0.05, 0.0)
    evidence = Evidence(states.of(marks), marks.astype(np.float32), states.words())
    probe = fit_probe(evidence, MULTI, has_bias)
    predicted = probe.logits(evidence.states) > 0
    assert (predicted == marks).mean() > 0.9
    words = label_probe(evidence, MULTI, has_bias).logits(evidence.states)
    share = 1 / (1 + np.exp(-words))
    assert share.mean(axis=0) == pytest.approx(marks.mean(axis=0), abs=0.08)


def test_two_classes_and_a_label_that_every_text_has() -> None:
    evidence, values = classes(80, count=2)
    binary = LabelSpace(["no", "yes"], ["yes"], "binary_classification")
    two = Evidence(evidence.states, values, evidence.label_states[:2])
    logits = fit_probe(two, binary, False).logits(two.states)
    assert logits.shape == (80, 2)
    assert (logits.argmax(axis=1) == values).mean() > 0.9
    every = LabelSpace(["only"], ["only"], "multi_label_classification")
    always = Evidence(evidence.states, np.ones((80, 1), dtype=np.float32), evidence.label_states[:1])
    assert np.isfinite(fit_probe(always, every, False).logits(always.states)).all()


@pytest.mark.parametrize("rows", [1, 5])
def test_a_handful_of_texts_is_enough(rows: int) -> None:
    evidence, _ = classes(rows)
    assert np.isfinite(fit_probe(evidence, SINGLE, False).weight).all()
    constant = Evidence(np.ones_like(evidence.states), evidence.values, np.ones_like(evidence.label_states))
    assert np.isfinite(fit_probe(constant, SINGLE, False).weight).all()
