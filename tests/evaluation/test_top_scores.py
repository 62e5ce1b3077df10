from __future__ import annotations

import numpy as np
from scipy import sparse

from llmcls.data.labels import LabelSpace
from llmcls.evaluation.thresholds import Thresholds
from llmcls.evaluation.top_scores import TopScores, decide_top, kept_hits, together, top_of

LABELS = LabelSpace(["a", "a/b", "c"], ["k"], "multi_label_classification", separator="|", hierarchy="/")


def test_decisions_have_their_ancestors_and_at_least_one_label() -> None:
    scores = top_of(np.array([[0.1, 0.9, 0.2], [0.3, 0.1, 0.2], [0.6, 0.2, 0.55]], dtype=np.float32), kept=2)
    assert scores.best.tolist() == [[1, 2], [0, 2], [0, 2]]
    decided = decide_top(scores.probabilities, Thresholds("global", [0.5] * 3), LABELS)
    assert decided.toarray().tolist() == [[True, True, False], [False, False, False], [True, False, True]]
    decided = decide_top(scores.probabilities, Thresholds("global", [0.5] * 3, at_least_one=True), LABELS)
    assert decided.toarray().tolist() == [[True, True, False], [True, False, False], [True, False, True]]


def test_chunks_of_scores_are_put_together_and_survive_their_numbers() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.random((7, 40), dtype=np.float32)
    whole, parts = top_of(probabilities, 10), [top_of(probabilities[:3], 10), top_of(probabilities[3:], 10)]
    joined = together(parts)
    assert (joined.probabilities != whole.probabilities).nnz == 0
    assert np.array_equal(joined.best, whole.best)
    again = TopScores.of(whole.probabilities, whole.numbers())
    assert np.array_equal(again.best, whole.best)
    true = sparse.csr_matrix(probabilities > 0.95)
    assert kept_hits(whole.probabilities, true).sum() == (probabilities > 0.95).sum()
