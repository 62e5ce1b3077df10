"""Classifying texts that arrive one after the other: from standard input or the command line, as JSON lines."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

import numpy as np

from llmcls.common.user_error import UserError
from llmcls.data.encoding import join_text_fields
from llmcls.data.tables import cell_text
from llmcls.evaluation.thresholds import apply_thresholds, mean_thresholds
from llmcls.evaluation.top_scores import decide_top, top_of
from llmcls.recipe.schema import Recipe
from llmcls.results.finished_runs import FinishedRun, require_same_labels
from llmcls.results.predictions import Predictions, prediction_lines
from llmcls.results.saved_labels import require_few
from llmcls.serving.loaded import load_runs

# Texts that are read before the first is answered; on a terminal, each is answered at once.
CHUNK = 256

# Id and text of a row.
Row = tuple[str, str]


def classify_stream(runs: Sequence[FinishedRun], rows: Iterable[Row], chunk: int = CHUNK) -> Iterator[str]:
    """One line for each row, as in a file of predictions, with bounded memory.

    Parameters
    ----------
    runs : sequence of FinishedRun
        With several, the mean of their probabilities, decided at the mean of their thresholds.
    rows : iterable
        Id and text of each row.
    chunk : int
        Rows that are read and scored together.

    Raises
    ------
    UserError
        If the runs have different labels, or a text cannot be read.
    """
    require_same_labels(runs)
    if len(runs) > 1:
        require_few(runs[0].labels, "predicting with several runs")
    loaded, labels, remaining = load_runs(runs), runs[0].labels, iter(rows)
    thresholds = mean_thresholds([run.thresholds for run in loaded])
    first = 0
    while some := list(itertools.islice(remaining, chunk)):
        texts = [text for _, text in some]
        each = [run.probabilities(run.tokens(texts, first)) for run in loaded]
        probabilities: np.ndarray = np.stack(each).mean(axis=0)
        ids = [row_id for row_id, _ in some]
        if labels.many:
            scores = top_of(probabilities, runs[0].recipe.train.top_labels)
            found = Predictions(ids, scores.probabilities, decide_top(scores.probabilities, thresholds, labels), None)
        else:
            found = Predictions(ids, probabilities, apply_thresholds(probabilities, thresholds, labels), None)
        yield from prediction_lines(found, labels)
        first += len(some)


def text_rows(lines: IO[bytes]) -> Iterator[Row]:
    """Each line as a text, numbered from 0.

    Raises
    ------
    UserError
        If a line is not UTF-8.
    """
    for number, line in enumerate(lines):
        yield str(number), _decoded(line, number).rstrip("\r\n")


def json_rows(lines: IO[bytes], recipe: Recipe) -> Iterator[Row]:
    """Each line as a JSON object with the text columns of a recipe, and its id column, if it has that.

    Raises
    ------
    UserError
        If a line is no such object.
    """
    data, columns = recipe.data, recipe.data.text_columns()
    for number, line in enumerate(lines):
        text = _decoded(line, number)
        if not text.strip():
            continue
        try:
            cells = json.loads(text)
        except (ValueError, RecursionError):
            cells = None
        if not isinstance(cells, dict):
            raise UserError(f"--input -: line {number + 1} is no JSON object; leave out --jsonl if lines are texts")
        for column in columns:
            if column not in cells:
                raise UserError(f"--input -: line {number + 1} has no {column!r}, which the recipe of the run reads")
        row_id = cell_text(cells[data.id_column]) if data.id_column in cells else str(number)
        yield row_id, join_text_fields([[cells[c]] for c in columns], data.text_separator)[0]


def _decoded(line: bytes, number: int) -> str:
    try:
        return line.decode("utf-8-sig" if number == 0 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"--input -: line {number + 1} is not UTF-8 (byte {error.start}); convert it") from None
