from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmcls.common.user_error import UserError
from llmcls.data.labels import LabelSpace
from llmcls.evaluation.calibration import Calibration, calibrated, fit_calibration, load_calibration, save_calibration
from llmcls.evaluation.metrics import expected_calibration_error, to_probabilities

MULTI = LabelSpace(["a", "b"], ["a", "b"], "multi_label_classification")
SINGLE = LabelSpace(["a", "b", "c"], ["x"], "single_label_classification", ["a", "b", "c"])


def overconfident(labels: LabelSpace, rows: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are three times too large, and labels drawn from the correct probabilities."""
    rng = np.random.default_rng(0)
    honest = rng.normal(0, 1.5, (rows, len(labels.names))).astype(np.float32)
    probabilities = to_probabilities(honest, labels.problem_type)
    if labels.multi_label:
        return 3 * honest, (rng.random(probabilities.shape) < probabilities).astype(np.float32)
    return 3 * honest, np.array([rng.choice(3, p=c / c.sum()) for c in probabilities.astype(np.float64)])


@pytest.mark.parametrize("labels", [MULTI, SINGLE], ids=["multi", "single"])
def test_temperature_corrects_overconfidence(labels: LabelSpace) -> None:
    logits, values = overconfident(labels)
    assert fit_calibration("temperature", logits, values, labels).temperature == pytest.approx(3.0, rel=0.1)


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
@pytest.mark.parametrize("labels", [MULTI, SINGLE], ids=["multi", "single"])
def test_calibration_reduces_the_calibration_error(labels: LabelSpace, kind: str) -> None:
    logits, values = overconfident(labels)
    fit, fresh = slice(0, 2000), slice(2000, None)
    found = fit_calibration(kind, logits[fit], values[fit], labels)
    true = values[fresh].astype(bool) if labels.multi_label else np.arange(3) == values[fresh, None]
    before = expected_calibration_error(to_probabilities(logits[fresh], labels.problem_type), true, labels.multi_label)
    p = calibrated(logits[fresh], found, labels)
    assert expected_calibration_error(p, true, labels.multi_label) < before / 2
    if not labels.multi_label:
        assert p.sum(axis=1) == pytest.approx(1.0, abs=1e-5)


def test_without_calibration_probabilities_are_unchanged() -> None:
    logits, _ = overconfident(MULTI, 10)
    assert np.array_equal(calibrated(logits, Calibration(), MULTI), to_probabilities(logits, MULTI.problem_type))


def test_a_calibration_that_is_missing_or_damaged_is_not_the_default(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    with pytest.raises(UserError, match=r"c\.json is missing, and without it probabilities differ"):
        load_calibration(path, 3)
    curves = '{"kind": "isotonic", "curves": []}'
    for content in ("", "[]", "{}x", '{"kind": "x"}', '{"temperature": 0}', curves, '{"a": 1}'):
        path.write_text(content)
        with pytest.raises(UserError, match=r"c\.json is damaged"):
            load_calibration(path, 3)


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
def test_a_calibration_is_stored_and_read_back(tmp_path: Path, kind: str) -> None:
    logits, values = overconfident(MULTI, 200)
    found = fit_calibration(kind, logits, values, MULTI)
    save_calibration(tmp_path / "c.json", found)
    again = load_calibration(tmp_path / "c.json", len(MULTI.names))
    assert np.array_equal(calibrated(logits, again, MULTI), calibrated(logits, found, MULTI))
