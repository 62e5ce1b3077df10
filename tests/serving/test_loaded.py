from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from torch._dynamo.utils import counters

from llmcls.common.user_error import UserError
from llmcls.results.error_analysis import read_texts
from llmcls.results.finished_runs import FinishedRun, open_run
from llmcls.results.predictions import read_predictions
from llmcls.results.run_folder import RunFolder
from llmcls.serving.loaded import load_runs
from tests.conftest import Experiment


@pytest.fixture
def runs(trained_once: Experiment) -> list[FinishedRun]:
    return [open_run(RunFolder(path)) for path in trained_once.runs]


def test_runs_over_one_base_share_it_and_answer_as_they_did_alone(runs: list[FinishedRun]) -> None:
    loaded = load_runs(runs)
    embeddings = {id(run.scorer.model.get_submodule("model.base_model.model.model.embed_tokens")) for run in loaded}
    assert len(embeddings) == 1
    texts = read_texts(runs[0].recipe, "test").texts
    for run in (loaded[0], loaded[1], loaded[0]):
        stored = read_predictions(run.run.folder.predictions("test"), run.labels)
        found = run.probabilities(run.tokens(texts))
        assert found == pytest.approx(stored.probabilities, abs=1e-5)
        assert (run.decisions(found) == stored.predicted).all()


def test_a_run_that_cannot_share_has_its_own_model(runs: list[FinishedRun]) -> None:
    other = replace(runs[1], recipe=replace(runs[1].recipe, train=replace(runs[1].recipe.train, packing=False)))
    alone, padded = load_runs([runs[0], other])
    assert (alone.scorer.packed, padded.scorer.packed) == (True, False)
    texts = ["A novel about a garden.", "x"]
    first = alone.probabilities(alone.tokens(texts))
    assert first == pytest.approx(load_runs([runs[0]])[0].probabilities(alone.tokens(texts)), abs=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler for torch.compile")
def test_after_the_warm_up_no_length_compiles_again(runs: list[FinishedRun], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmcls.model.kernel_choice.COMPILED_ON_CPU", 0)
    (run,) = load_runs(runs[:1])
    run.warm_up()
    compiled = counters["stats"]["unique_graphs"]
    assert compiled > 0
    for lengths in ([1], [1, 1, 1], [9], [1, 40], [30, 30, 30]):
        run.probabilities([np.full(length, 5, dtype=np.int32) for length in lengths])
    assert counters["stats"]["unique_graphs"] == compiled


def test_runs_of_different_precision_are_refused(runs: list[FinishedRun]) -> None:
    with pytest.raises(UserError, match=r"computes in bf16, but .* in no; one process has one precision"):
        load_runs([runs[0], replace(runs[1], mixed_precision="bf16")])
