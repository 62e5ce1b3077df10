from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from llmcls.common.files import write_json
from llmcls.evaluation.baseline_store import Baseline, BaselineStore


@pytest.fixture
def store(tmp_path: Path) -> BaselineStore:
    return BaselineStore(tmp_path / "baselines.json", tmp_path / "decisions.npz")


def baseline(value: float) -> Baseline:
    decisions = {"validation": np.zeros((2, 3), dtype=bool), "test": np.eye(3, dtype=bool)}
    return Baseline({split: {"f1_micro": value} for split in decisions} | {"seconds": 1.0}, decisions)


def test_groups_are_stored_beside_each_other_and_replaced_alone(store: BaselineStore) -> None:
    assert store.read() == store.decisions_on("test") == {}
    store.write("texts", "a", {"majority": baseline(0.1), "tfidf_linear": baseline(0.2)})
    store.write("probe", "b", {"probe": baseline(0.3)})
    store.write("texts", "c", {"majority": baseline(0.4)})
    assert {name: metrics["test"]["f1_micro"] for name, metrics in store.read().items()} == {
        "probe": 0.3,
        "majority": 0.4,
    }
    assert (store.key("texts"), store.key("probe"), store.key("other")) == ("c", "b", None)
    assert set(store.decisions_on("test")) == {"probe", "majority"}
    assert np.array_equal(store.decisions_on("test")["probe"], np.eye(3, dtype=bool))
    assert store.decisions_on("validation")["majority"].shape == (2, 3)


def test_a_group_without_baselines_is_removed(store: BaselineStore) -> None:
    store.write("probe", "b", {"probe": baseline(0.3)})
    store.write("probe", "c", {})
    assert store.key("probe") is None
    assert store.read() == store.decisions_on("test") == {}


def test_a_file_of_an_older_version_is_made_again(store: BaselineStore) -> None:
    write_json(store.metrics, {"of": "key", "baselines": {"majority": {"test": {"f1_micro": 0.1}}}})
    assert store.key("texts") is None
    assert store.read() == {}


def test_sparse_decisions_come_back_as_they_were(store: BaselineStore) -> None:
    decisions = sparse.csr_matrix(np.array([[True, False, True], [False, False, False]]))
    store.write("texts", "a", {"majority": Baseline({"test": {}}, {"test": decisions})})
    store.write("probe", "b", {"probe": baseline(0.3)})
    found = store.decisions_on("test")
    assert set(found) == {"majority", "probe"}
    assert found["majority"].dtype == bool
    assert (found["majority"] != decisions).nnz == 0
