from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from llmcls.model.classifier import Classifier
from llmcls.results.error_analysis import read_texts
from llmcls.results.finished_runs import open_run
from llmcls.results.predictions import read_predictions
from llmcls.results.run_folder import RunFolder
from llmcls.serving import service as module
from llmcls.serving.batcher import Refused
from llmcls.serving.loaded import LoadedRun, load_runs
from llmcls.serving.metrics import Metrics
from llmcls.serving.service import Service
from tests.conftest import Experiment


@pytest.fixture
def run(trained_once: Experiment) -> LoadedRun:
    return load_runs([open_run(RunFolder(trained_once.runs[0]))])[0]


@pytest.fixture
def service(run: LoadedRun) -> Iterator[Service]:
    made = Service({"only": run}, Metrics(), max_waiting=100)
    yield made
    made.close()


def test_a_request_longer_than_a_piece_and_a_pass_is_answered_whole(
    service: Service, run: LoadedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE", 300)
    texts = read_texts(run.run.recipe, "test").texts
    found = asyncio.run(service.probabilities("only", texts))
    stored = read_predictions(run.run.folder.predictions("test"), run.labels)
    assert found == pytest.approx(stored.probabilities, abs=1e-5)
    assert (run.decisions(found) == stored.predicted).all()
    values = service.metrics.registry.get_sample_value
    tokens = sum(len(row) for row in run.tokens(texts))
    assert values("llmcls_tokens_total", {"run": "only"}) == tokens
    assert values("llmcls_texts_total", {"run": "only"}) == len(texts)
    # No pass has more tokens than the budget, and few have much less.
    fewest = -(-tokens // run.scorer.max_tokens)
    assert fewest <= (values("llmcls_passes_total", {"run": "only"}) or 0) <= 2 * fewest


def test_short_texts_are_tokenized_at_once_and_others_by_the_one_thread(
    service: Service, run: LoadedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, real = [], run.tokens

    def watched(texts: list[str]) -> list[np.ndarray]:
        threads.append(threading.current_thread().name)
        return real(texts)

    monkeypatch.setattr(run, "tokens", watched)
    short, long = ["a novel", "of a garden"], ["a novel " * 1000]

    async def ask() -> list[np.ndarray]:
        found = [await service.probabilities("only", texts) for texts in (short, long)]
        # While the tokenizer is in use, short texts wait for it outside the event loop.
        with service._tokenizer_free:
            waiting = asyncio.ensure_future(service.probabilities("only", short))
            await asyncio.sleep(0.05)
            assert not waiting.done()
        return [*found, await waiting]

    first, _, again = asyncio.run(ask())
    assert first == pytest.approx(again, abs=1e-6)
    own = threading.current_thread().name
    assert [name == own for name in threads] == [True, False, False]
    assert all(name.startswith("llmcls-tokenizing") for name in threads[1:])


def test_results_name_the_labels_and_keep_the_highest(service: Service, run: LoadedRun) -> None:
    probabilities = np.full((1, 10), 0.001, dtype=np.float32)
    # Shown with nine decimals, the two are the same.
    probabilities[0, [3, 7]] = 1e-11, 2e-11
    probabilities[0, [0, 1, 2, 4, 5, 6, 8, 9]] = 0.0
    (tied,) = service.results("only", probabilities, 2)
    assert list(tied["probabilities"].items()) == [(run.labels.names[7], 0.0), (run.labels.names[3], 0.0)]
    probabilities[0, [3, 7]] = 0.9, 0.8
    (found,) = service.results("only", probabilities, 2)
    assert list(found["probabilities"]) == [run.labels.names[3], run.labels.names[7]]
    assert found["labels"] == [run.labels.names[3], run.labels.names[7]]
    assert list(service.results("only", probabilities, None)[0]["probabilities"]) == run.labels.names


def test_passes_are_small_on_a_cpu_unless_told_otherwise(run: LoadedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CPU_TOKENS", 100)
    for given, expected in ((None, 100), (333, 333)):
        service = Service({"only": run}, Metrics(), 100, given)
        assert service.batcher.lanes["only"].max_tokens == run.scorer.max_tokens == expected
        service.close()


def test_passes_that_run_at_the_same_time_give_each_run_its_own_answers(
    trained_once: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CPU_TOKENS", 200)
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    real = Classifier.forward

    def slow(*arguments: Any) -> torch.Tensor:
        time.sleep(0.002)
        return real(*arguments)

    # The adapter is set before: a pass of the other run in between would change it.
    monkeypatch.setattr(Classifier, "forward", slow)
    # Over the same base, so that one's passes must not run with the other's adapter.
    loaded = load_runs([open_run(RunFolder(path)) for path in trained_once.runs])
    runs = {str(i): run for i, run in enumerate(loaded)}
    service = Service(runs, Metrics(), max_waiting=10_000)
    texts = read_texts(loaded[0].run.recipe, "test").texts

    async def ask_all() -> list[np.ndarray]:
        # In turns, so that both runs have texts all the time.
        return await asyncio.gather(*(service.probabilities(name, [text]) for text in texts for name in runs))

    found = asyncio.run(ask_all())
    service.close()
    for i, run in enumerate(loaded):
        stored = read_predictions(run.run.folder.predictions("test"), run.labels)
        assert np.concatenate(found[i :: len(runs)]) == pytest.approx(stored.probabilities, abs=1e-5)


def test_a_service_that_stops_refuses(service: Service) -> None:
    service.stop(60)
    with pytest.raises(Refused, match="the server is stopping"):
        asyncio.run(service.probabilities("only", ["a"]))
