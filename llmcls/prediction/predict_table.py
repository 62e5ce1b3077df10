"""Predicting a table with a trained run: one JSON line per row, in the order of the input.

Lines go to ``<output>.partial`` as they are made, so an interrupted prediction resumes where it stopped.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
from accelerate import Accelerator

from llmcls.common.files import read_json, remove_partials, write_json
from llmcls.data.findings import rows_without_text, shown_rows
from llmcls.data.labels import LabelSpace, multi_hot
from llmcls.data.splits import Split, tokenize_split
from llmcls.data.tables import read_table
from llmcls.engine.accelerator import autocast_dtype
from llmcls.engine.agreement import first_process_first, on_main
from llmcls.evaluation.calibration import Calibration, calibrated, load_calibration
from llmcls.evaluation.metrics import headline_text
from llmcls.evaluation.outcome import uncertainty
from llmcls.evaluation.scoring import Scorer, evaluate_logits, make_scorer, score_chunks
from llmcls.evaluation.thresholds import Thresholds, apply_thresholds, load_thresholds
from llmcls.evaluation.top_metrics import evaluate_top, top_uncertainty
from llmcls.evaluation.top_scores import TOP_NUMBERS, TopScores, decide_top
from llmcls.evaluation.top_scoring import read_top
from llmcls.model.build import load_trained_classifier
from llmcls.model.pretrained import load_tokenizer
from llmcls.prediction.resumable_predictions import ResumablePredictions
from llmcls.results.finished_runs import FinishedRun, frequencies_of
from llmcls.results.predictions import Predictions

log = logging.getLogger(__name__)


def predict_table(
    run: FinishedRun, input_path: str, output: Path, accelerator: Accelerator, kind: str = "jsonl"
) -> dict[str, Any] | None:
    """Predict every row of a table. Collective; the main process writes.

    Parameters
    ----------
    run : FinishedRun
    input_path : str
        CSV, TSV, Excel, JSONL or Parquet with the text columns of the recipe.
    output : Path
        The file to write. If the input has the label columns, the metrics go to ``<output stem>.metrics.json``.
    accelerator : Accelerator
    kind : str
        The format of the output: "jsonl", "csv" or "parquet".

    Returns
    -------
    The metrics, on the main process, if the input has the label columns.
    """
    partial = ResumablePredictions(output, run.labels, kind, TOP_NUMBERS if run.labels.many else None)

    def resume() -> int | None:
        output.parent.mkdir(parents=True, exist_ok=True)
        for name in (output.name, _metrics_of(output).name):
            remove_partials(output.parent, f"{name}.")
        return partial.resume(signature(run, input_path))

    # Only the main process reads and writes the output; the other ranks learn from it where to start.
    start = on_main(accelerator, resume)
    if start is None:
        log.info("%s was complete; only its end had been interrupted", output)
        return _read_metrics(output)
    split = tokenize_input(run, input_path, accelerator)
    empty = rows_without_text(split)
    if len(empty):
        log.warning("%s: %d of %d texts are empty (%s)", input_path, len(empty), len(split), shown_rows(empty + 1))
    scorer = open_scorer(run, accelerator)
    thresholds = load_thresholds(run.folder.thresholds, run.labels.names)
    calibration = load_calibration(run.folder.calibration, len(run.labels.names))
    if start:
        log.info("%s: resuming after %d of %d rows", output, start, len(split))
    if run.labels.many:
        for first, scores in read_top(scorer, split, run.recipe.train.top_labels, start):
            if accelerator.is_main_process:
                last = first + len(scores)
                predicted = decide_top(scores.probabilities, thresholds, run.labels)
                true = None if split.labels is None else split.labels[first:last]
                rows = Predictions(split.ids(first, last), scores.probabilities, predicted, true)
                partial.append(rows, scores.numbers())
                log.info("%d of %d rows", last, len(split))
    else:
        _predict_chunks(scorer, split, start, (thresholds, calibration), partial)
    metrics = None
    with first_process_first(accelerator, accelerator.is_main_process):
        if not accelerator.is_main_process:
            return None
        if split.labels is not None:
            metrics = _measured(run, split, partial, thresholds, calibration)
            write_metrics(output, metrics, run.labels, str(run.folder.path))
        partial.finish()
        log.info("%d predictions -> %s", len(split), output)
    return metrics


def _predict_chunks(
    scorer: Scorer, split: Split, start: int, decisions: tuple[Thresholds, Calibration], partial: ResumablePredictions
) -> None:
    """Predict the rows from ``start`` on, chunk by chunk. Collective; the main process writes."""
    labels, (thresholds, calibration) = scorer.labels, decisions
    for first, logits in score_chunks(scorer, split, start):
        if scorer.accelerator.is_main_process:
            last = first + len(logits)
            probabilities = calibrated(logits, calibration, labels)
            predicted = apply_thresholds(probabilities, thresholds, labels)
            true = None if split.labels is None else split.labels[first:last]
            partial.append(Predictions(split.ids(first, last), probabilities, predicted, true), logits)
            log.info("%d of %d rows", last, len(split))


def _measured(
    run: FinishedRun, split: Split, partial: ResumablePredictions, thresholds: Thresholds, calibration: Calibration
) -> dict[str, Any]:
    """The metrics of all rows written."""
    labels, values = run.labels, split.known_labels
    if labels.many:
        written, true = partial.written(), values.astype(bool)
        scores = TopScores.of(written.probabilities, partial.numbers())
        metrics = evaluate_top(scores, true, written.predicted, labels, frequencies_of(run))
        return metrics | top_uncertainty(true, written.predicted, labels)
    evaluation = evaluate_logits(partial.numbers(), values, labels, thresholds, calibration)
    return evaluation.metrics | uncertainty(multi_hot(values, len(labels.names)), evaluation.predicted, labels)


def _metrics_of(output: Path) -> Path:
    return output.with_name(f"{output.stem}.metrics.json")


def _read_metrics(output: Path) -> dict[str, Any] | None:
    """The metrics that were written beside a prediction; None if the input had no labels."""
    path = _metrics_of(output)
    metrics: dict[str, Any] | None = read_json(path) if path.is_file() else None
    return metrics


def write_metrics(output: Path, metrics: dict[str, Any], labels: LabelSpace, who: str) -> None:
    """Write the metrics of a prediction beside it, and log the main ones of ``who`` predicted."""
    write_json(_metrics_of(output), metrics)
    log.info("%s: %s", who, headline_text(metrics, labels.problem_type))


def signature(run: FinishedRun, input_path: str) -> str:
    """A digest of everything that the predictions depend on: input, weights, thresholds, calibration, recipe."""
    digest = hashlib.sha256(run.recipe.model.model_name.encode())
    files = sorted(p for p in run.folder.model.iterdir() if p.is_file())
    decisions = [run.folder.thresholds, run.folder.calibration]
    for path in [Path(input_path), *(p for p in decisions if p.exists()), *files]:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def open_scorer(run: FinishedRun, accelerator: Accelerator) -> Scorer:
    """Load the model of a run, ready to score. Collective."""
    placement = (accelerator.device, autocast_dtype(accelerator))
    classifier = load_trained_classifier(run.recipe, run.labels, run.folder.model, *placement)
    model = accelerator.prepare_model(classifier, evaluation_mode=True)
    pad_token_id = load_tokenizer(run.recipe.model).pad_token_id
    return make_scorer(accelerator, model, run.labels, pad_token_id, run.recipe)


def tokenize_input(
    run: FinishedRun, path: str, accelerator: Accelerator, option: str = "--input", with_labels: bool = True
) -> Split:
    """Read and tokenize a table with the settings of a run. Collective.

    Parameters
    ----------
    run : FinishedRun
    path : str
    accelerator : Accelerator
    option : str
        The option that names the file, for error messages.
    with_labels : bool
        Whether to read the labels if the table has all label columns.

    Returns
    -------
    Split
    """
    if not sys.stderr.isatty() or not accelerator.is_main_process:
        datasets.disable_progress_bars()
    with first_process_first(accelerator, accelerator.is_local_main_process):
        table = read_table(path, option, run.recipe.data, insist=False)
        labelled = with_labels and all(column in table.column_names for column in run.labels.columns)
        recipe, tokenizer = run.recipe, load_tokenizer(run.recipe.model)
        if recipe.data.id_column and recipe.data.id_column not in table.column_names:
            log.warning("%s has no column %r; its rows are numbered from 0", path, recipe.data.id_column)
            recipe = replace(recipe, data=replace(recipe.data, id_column=None))
        return tokenize_split(table, "input", path, recipe, tokenizer, run.labels, labelled)
