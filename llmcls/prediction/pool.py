"""From a pool of texts without labels, those to label next: one pass of a run over the pool, and a choice.

The pass is what takes time. Its numbers are stored as they are made, so that an interrupted one resumes.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from accelerate import Accelerator

from llmcls.common.user_error import UserError
from llmcls.data.csv_files import separator_of
from llmcls.data.encoding import whole_texts
from llmcls.data.splits import Split, text_digest
from llmcls.data.subset import part_of
from llmcls.data.tables import cell_text, read_table
from llmcls.engine.accelerator import unwrapped
from llmcls.engine.agreement import first_process_first, on_main
from llmcls.evaluation.acquisition import candidates, doubt, spread
from llmcls.evaluation.calibration import calibrated, load_calibration
from llmcls.evaluation.states import state_chunks
from llmcls.evaluation.thresholds import apply_thresholds, load_thresholds
from llmcls.model.head import head_linear
from llmcls.prediction.predict_table import open_scorer, signature, tokenize_input
from llmcls.prediction.stored_rows import StoredRows
from llmcls.recipe.schema import SPLIT_KEYS
from llmcls.results.finished_runs import FinishedRun
from llmcls.results.label_list import Suggestions, write_label_list
from llmcls.results.saved_labels import require_few

log = logging.getLogger(__name__)

# Probabilities that are looked at together.
NUMBERS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Order:
    """What is asked for.

    Attributes
    ----------
    pool : str
        The table of texts.
    output : Path
        The list to write.
    rows : int
        Texts to list, at least 1.
    seed : int
        Of the clusters.
    """

    pool: str
    output: Path
    rows: int
    seed: int


@dataclass(frozen=True)
class LeftOut:
    """Texts of a pool that need no label.

    Attributes
    ----------
    labelled : int
        With a label in the pool, or in a file of the run.
    repeated : int
        The same as an earlier one.
    empty : int
    """

    labelled: int
    repeated: int
    empty: int

    def __str__(self) -> str:
        return f"{self.labelled} labelled already, {self.repeated} repeated, {self.empty} empty"


def list_texts_to_label(run: FinishedRun, order: Order, accelerator: Accelerator) -> tuple[int, LeftOut]:
    """Write the list of texts to label next. Collective; the main process writes.

    Parameters
    ----------
    run : FinishedRun
    order : Order
    accelerator : Accelerator

    Returns
    -------
    The number of texts listed, and what was left out.

    Raises
    ------
    UserError
        If the pool cannot be read, or every text of it has a label.
    """
    require_few(run.labels, "llmcls label")
    whole = tokenize_input(run, order.pool, accelerator, "--pool", with_labels=False)
    table = read_table(order.pool, "--pool", run.recipe.data, insist=False)
    open_rows, left_out = on_main(accelerator, lambda: _without_label(run, order, whole, table))
    if len(open_rows) < order.rows and accelerator.is_main_process:
        log.warning("%s: only %d texts are left to label; all are listed", order.pool, len(open_rows))
    numbers, hidden = _pass(run, order, part_of(whole, open_rows), accelerator)
    count = min(order.rows, len(open_rows))
    with first_process_first(accelerator, accelerator.is_main_process):
        if accelerator.is_main_process:
            stored = numbers.rows()
            rows, suggestions = _choose(run, stored[:, :hidden], stored[:, hidden:], count, order.seed)
            separator = separator_of(run.recipe.data.csv_separator or ",")
            write_label_list(order.output, table.select(open_rows[rows].tolist()), suggestions, run.labels, separator)
            numbers.remove()
    return count, left_out


def _without_label(run: FinishedRun, order: Order, whole: Split, table: datasets.Dataset) -> tuple[np.ndarray, LeftOut]:
    """The rows of the pool that have no label yet, each text once; and the others, counted."""
    digests = whole.known_digests
    filled = np.zeros(len(digests), dtype=bool)
    for column in set(run.labels.columns) & set(table.column_names):
        filled |= np.array([bool(cell_text(cell).strip()) for cell in table[column]])
    empty = digests == 0
    known = np.union1d(_labelled_texts(run), digests[filled])
    labelled = (filled | np.isin(digests, known)) & ~empty
    _, first = np.unique(digests, return_index=True)
    repeated = ~np.isin(np.arange(len(digests)), first) & ~labelled & ~empty
    rows = np.flatnonzero(~(labelled | repeated | empty))
    left_out = LeftOut(int(labelled.sum()), int(repeated.sum()), int(empty.sum()))
    if len(rows) == 0:
        raise UserError(f"--pool: {order.pool} has no text to label ({left_out}); give a table with other texts")
    return rows, left_out


def _labelled_texts(run: FinishedRun) -> np.ndarray:
    """The digests of all texts in the files that a run was trained, validated and tested with, int64."""
    data, found = run.recipe.data, [np.empty(0, dtype=np.int64)]
    for split, path in data.files().items():
        if not Path(path).is_file():
            log.warning("%s is not there any more; texts of it may be listed again", path)
            continue
        table = read_table(path, f"data.{SPLIT_KEYS[split]}", data)
        if set(data.text_columns()) <= set(table.column_names):
            found.append(np.array([text_digest(text) for text in whole_texts(table, data)], dtype=np.int64))
    return np.concatenate(found)


def _pass(run: FinishedRun, order: Order, pool: Split, accelerator: Accelerator) -> tuple[StoredRows, int]:
    """States and logits of every row of the pool, stored; and the numbers of a state. Collective."""
    scorer = open_scorer(run, accelerator)
    linear = head_linear(unwrapped(scorer.model), len(run.labels.names), trained=False)
    if linear is None:
        raise UserError(f"{run.folder.path}: the model has no linear head, whose states tell which texts are alike")
    numbers = StoredRows(order.output, linear.in_features + len(run.labels.names))
    start = on_main(accelerator, lambda: numbers.resume(_made_from(run, order, pool), len(pool)))
    if start:
        log.info("%s: resuming after %d of %d texts", order.output, start, len(pool))
    if start < len(pool):
        for first, found in state_chunks(scorer, pool, linear, start, with_logits=True):
            if accelerator.is_main_process:
                numbers.append(found)
                log.info("%d of %d texts", first + len(found), len(pool))
    return numbers, linear.in_features


def _made_from(run: FinishedRun, order: Order, pool: Split) -> str:
    """A digest of everything that the pass depends on."""
    digest = hashlib.sha256(signature(run, order.pool).encode())
    digest.update(pool.known_digests.tobytes())
    return digest.hexdigest()


def _choose(
    run: FinishedRun, states: np.ndarray, logits: np.ndarray, count: int, seed: int
) -> tuple[np.ndarray, Suggestions]:
    """The chosen rows of the pass, and what the run says of them."""
    labels = run.labels
    thresholds = load_thresholds(run.folder.thresholds, labels.names)
    calibration = load_calibration(run.folder.calibration, len(labels.names))

    def probabilities(rows: np.ndarray | slice) -> np.ndarray:
        return calibrated(np.asarray(logits[rows]), calibration, labels)

    # In parts: with many labels, the probabilities of a large pool would fill the memory.
    step = max(1, NUMBERS_AT_ONCE // len(labels.names))
    parts = [
        doubt(probabilities(slice(first, first + step)), thresholds, labels) for first in range(0, len(logits), step)
    ]
    amount = np.concatenate([part.amount for part in parts])
    about = np.concatenate([part.label for part in parts])
    among = candidates(amount, count)
    choice = spread(np.asarray(states[among]), amount[among], count, seed)
    rows = among[choice.rows]
    given = probabilities(rows)
    decided = apply_thresholds(given, thresholds, labels)
    return rows, Suggestions(given, decided, about[rows], amount[rows], choice.stands_for)
