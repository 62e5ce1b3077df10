"""Predicting with several runs: the mean of their probabilities."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from llmcls.common.files import write_text
from llmcls.data.labels import multi_hot
from llmcls.engine.agreement import first_process_first, from_main
from llmcls.evaluation.metrics import evaluate_predictions
from llmcls.evaluation.outcome import uncertainty
from llmcls.evaluation.thresholds import apply_thresholds, load_thresholds, mean_thresholds
from llmcls.prediction.predict_table import predict_table, signature, write_metrics
from llmcls.results.finished_runs import FinishedRun, require_same_labels
from llmcls.results.prediction_formats import write_lines
from llmcls.results.predictions import Predictions, prediction_lines, read_prediction_chunks
from llmcls.results.saved_labels import require_few

log = logging.getLogger(__name__)


def predict_ensemble(
    runs: list[FinishedRun], input_path: str, output: Path, accelerator: Accelerator, kind: str = "jsonl"
) -> None:
    """Predict with each run, and write the mean of their probabilities, decided at the mean of their thresholds.

    The predictions of each run stay in ``<output>.members`` until all are there, so an interrupted ensemble resumes.
    Collective; the main process writes.

    Raises
    ------
    UserError
        If the runs have different labels.
    """
    require_same_labels(runs)
    require_few(runs[0].labels, "predicting with several runs")
    folder = output.with_name(f"{output.name}.members")
    paths = [folder / f"{i}.jsonl" for i in range(len(runs))]
    for run, path in zip(runs, paths, strict=True):
        done, made_from = path.with_suffix(".done"), signature(run, input_path)
        if not from_main(accelerator, done.exists() and done.read_text(encoding="utf-8") == made_from):
            predict_table(run, input_path, path, accelerator)
            if accelerator.is_main_process:
                write_text(done, made_from)
        accelerator.wait_for_everyone()
    with first_process_first(accelerator, accelerator.is_main_process):
        if accelerator.is_main_process:
            _write_mean(runs, paths, output, kind)
            shutil.rmtree(folder)
            log.info("mean of %d runs -> %s", len(runs), output)


def _write_mean(runs: list[FinishedRun], paths: list[Path], output: Path, kind: str) -> None:
    labels = runs[0].labels
    thresholds = mean_thresholds([load_thresholds(run.folder.thresholds, labels.names) for run in runs])
    written: list[Predictions] = []

    def lines() -> Iterator[str]:
        for members in zip(*(read_prediction_chunks(path, labels) for path in paths), strict=True):
            probabilities: np.ndarray = np.stack([member.probabilities for member in members]).mean(axis=0)
            predicted = apply_thresholds(probabilities, thresholds, labels)
            mean = Predictions(members[0].ids, probabilities, predicted, members[0].true)
            if mean.true is not None:
                written.append(mean)
            yield from prediction_lines(mean, labels)

    write_lines(lines(), output, labels, kind)
    if written:
        true = np.concatenate([chunk.true for chunk in written if chunk.true is not None])
        probabilities = np.concatenate([chunk.probabilities for chunk in written])
        predicted = np.concatenate([chunk.predicted for chunk in written])
        metrics = evaluate_predictions(probabilities, true, predicted, labels.names, labels.binary)
        metrics |= uncertainty(multi_hot(true, len(labels.names)), predicted, labels)
        write_metrics(output, metrics, labels, f"mean of {len(runs)} runs")
