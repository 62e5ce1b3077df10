"""Classifying for many requests at once: tokenizes their texts and gathers them into passes of the loaded runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import nn

from llmcls.engine.accelerator import unwrapped
from llmcls.serving.batcher import Batcher, Lane, Refused
from llmcls.serving.handover import Handover
from llmcls.serving.loaded import LoadedRun
from llmcls.serving.metrics import Metrics

# Characters that are tokenized at once. Long requests are cut into such pieces, so that others have their turn between.
PIECE = 100_000
# Up to so many characters, texts are tokenized in the event loop: a thread would take longer to begin and to report.
AT_ONCE = 4_000
# Rows of a padded pass are as long as its longest text. Of several passes of texts, each gets texts of like lengths.
PADDED_PASSES = 4
# On a CPU, larger passes are not faster, and every text waits for the whole pass that it is in.
CPU_TOKENS = 1024
# Passes that a CPU runs at the same time, each on its part of the cores. A small pass is hardly faster on two cores
# than on one, so two of them side by side have almost twice the texts per second. Not more than this: Python runs in
# one thread at a time.
CPU_PASSES = 4


class Service:
    """The loaded runs of a server, and the threads that tokenize and score for them.

    Parameters
    ----------
    runs : dict of LoadedRun
        By the name that requests use; the first one is the default.
    metrics : Metrics
    max_waiting : int
        Texts that may wait for a pass.
    batch_tokens : int, optional
        Tokens of a pass. Default: as in the evaluation of the run, but on a CPU at most `CPU_TOKENS`.
    """

    def __init__(
        self, runs: Mapping[str, LoadedRun], metrics: Metrics, max_waiting: int, batch_tokens: int | None = None
    ) -> None:
        self.runs, self.metrics = dict(runs), metrics
        on_cpu = all(run.scorer.accelerator.device.type == "cpu" for run in runs.values())
        self._cores = torch.get_num_threads()
        passes = min(CPU_PASSES, self._cores) if on_cpu else 1
        # Compiled kernels use as many threads as there were when they were compiled.
        torch.set_num_threads(self._cores // passes)
        for run in runs.values():
            run.warm_up()
            scorer = run.scorer
            most = CPU_TOKENS if scorer.accelerator.device.type == "cpu" else scorer.max_tokens
            scorer.max_tokens = batch_tokens or min(scorer.max_tokens, most)
        torch.set_num_threads(self._cores)
        self.batcher = Batcher({name: self._lane(name, run) for name, run in runs.items()}, max_waiting, passes)
        metrics.watch_waiting(lambda: self.batcher.waiting)
        # A tokenizer must not be used by two threads at the same time.
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="llmcls-tokenizing")
        self._tokenizer_free = threading.Lock()
        self._handover: Handover | None = None

    async def probabilities(self, name: str, texts: list[str]) -> np.ndarray:
        """Calibrated probabilities of texts, float32 [texts, labels].

        Raises
        ------
        Refused
            If too many texts wait, or the server stops.
        """
        if self.batcher.stopping:
            raise Refused("the server is stopping; ask another one")
        loop = asyncio.get_running_loop()
        if self._handover is None or self._handover.loop is not loop:
            self._handover = Handover(loop)
        tokens = self._tokens_at_once(name, texts)
        if tokens is None:
            tokens = []
            for piece in _pieces(texts):
                tokens += await loop.run_in_executor(self._tokenizing, self._tokens, name, piece)
        found: np.ndarray = await self._handover.wrap(self.batcher.submit(name, tokens))
        return found

    def results(self, name: str, probabilities: np.ndarray, top_k: int | None) -> list[dict[str, Any]]:
        """For each text the labels that it gets, and the probabilities of all labels, or of the ``top_k`` highest."""
        run = self.runs[name]
        names, found = run.labels.names, []
        rounded = np.round(probabilities.astype(np.float64), 9)
        for row, exact, on in zip(rounded, probabilities, run.decisions(probabilities), strict=True):
            if top_k is None:
                shown = dict(zip(names, row.tolist(), strict=True))
            else:
                shown = {names[i]: float(row[i]) for i in np.argsort(-exact, kind="stable")[:top_k]}
            found.append({"labels": [names[i] for i in np.flatnonzero(on)], "probabilities": shown})
        return found

    def stop(self, seconds: float) -> None:
        """Refuse new texts from now on, and after ``seconds`` those that still wait. Returns at once."""
        self.batcher.stop(seconds)

    def close(self) -> None:
        """End the threads, after all requests are answered or refused."""
        self.batcher.stop(0)
        self.batcher.join()
        self._tokenizing.shutdown()

    def _tokens(self, name: str, texts: list[str]) -> list[np.ndarray]:
        with self._tokenizer_free:
            return self.runs[name].tokens(texts)

    def _tokens_at_once(self, name: str, texts: list[str]) -> list[np.ndarray] | None:
        """Token ids of short texts; None if they are long, or a thread is using the tokenizer."""
        if sum(map(len, texts)) > AT_ONCE or not self._tokenizer_free.acquire(blocking=False):
            return None
        try:
            return self.runs[name].tokens(texts)
        finally:
            self._tokenizer_free.release()

    def _lane(self, name: str, run: LoadedRun) -> Lane:
        passes, texts, tokens = (c.labels(name) for c in (self.metrics.passes, self.metrics.texts, self.metrics.tokens))
        model: nn.Module = run.scorer.model
        model.register_forward_hook(lambda *_: passes.inc())

        def score(rows: list[np.ndarray], running: int) -> np.ndarray:
            # For this thread.
            torch.set_num_threads(max(1, self._cores // running))
            found = run.probabilities(rows)
            texts.inc(len(rows))
            tokens.inc(sum(len(row) for row in rows))
            return found

        # Runs with different adapters over the same model switch it to theirs.
        base = id(unwrapped(model).model)
        return Lane(score, run.scorer.max_tokens * (1 if run.scorer.packed else PADDED_PASSES), base)


def _pieces(texts: list[str]) -> Iterator[list[str]]:
    """Consecutive texts of up to `PIECE` characters together, at least one."""
    piece: list[str] = []
    size = 0
    for text in texts:
        if piece and size + len(text) > PIECE:
            yield piece
            piece, size = [], 0
        piece.append(text)
        size += len(text)
    yield piece
