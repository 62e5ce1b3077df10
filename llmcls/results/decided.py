"""Deciding a predictions file again: labels only where they are sure enough, and sets that contain the true labels.

Both are fitted on the validation predictions of the run that made the file; see `llmcls.evaluation.selective`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llmcls.common.user_error import UserError
from llmcls.data.labels import LabelSpace
from llmcls.evaluation.selective import Abstention, LabelSets, fit_abstention, fit_label_sets, keep, label_sets
from llmcls.results.finished_runs import labels_of
from llmcls.results.prediction_formats import write_lines
from llmcls.results.predictions import prediction_lines, read_prediction_chunks, read_predictions
from llmcls.results.run_folder import RunFolder
from llmcls.results.saved_labels import require_few


@dataclass
class Tally:
    """What became of the rows of a file.

    Attributes
    ----------
    rows, decisions, kept : int
    right : int
        Kept decisions that are true.
    labels_in_sets : int
        Sizes of all sets.
    covered : list of float
        For each row with true labels, the share that its set contains.
    known : bool
        Whether the file has true labels.
    """

    rows: int = 0
    decisions: int = 0
    kept: int = 0
    right: int = 0
    labels_in_sets: int = 0
    covered: list[float] = field(default_factory=list)
    known: bool = False


@dataclass(frozen=True)
class Decided:
    """The rules of a file that was decided again, and what they did.

    Attributes
    ----------
    abstention : Abstention, optional
    sets : LabelSets, optional
    tally : Tally
    """

    abstention: Abstention | None
    sets: LabelSets | None
    tally: Tally

    def sentences(self) -> list[str]:
        """The result in words."""
        found, tally = [], self.tally
        if self.abstention is not None:
            found.append(_abstention_in_words(self.abstention, tally))
        if self.sets is not None:
            text = f"sets with a coverage of {self.sets.coverage:.0%}: {self.sets.size:.2f} labels each on validation"
            text += f", {tally.labels_in_sets / max(1, tally.rows):.2f} here"
            if tally.known:
                text += f"; here they contain {np.mean(tally.covered):.1%} of the true labels of a text"
            found.append(text)
        return found


def _abstention_in_words(abstention: Abstention, tally: Tally) -> str:
    if abstention.precision is None:
        return (
            f"a precision of {abstention.target:.0%} cannot be promised: too few validation rows, or too many mistakes "
            "among the most probable decisions; all decisions are unsure"
        )
    text = (
        f"decisions with a precision of {abstention.target:.0%}: {abstention.kept:.1%} are kept on validation, of "
        f"which {abstention.precision:.1%} are right; {tally.kept / max(1, tally.decisions):.1%} are kept here"
    )
    return text + (f", of which {tally.right / max(1, tally.kept):.1%} are right" if tally.known else "")


def decide(
    run: RunFolder, source: Path, output: Path, kind: str, precision: float | None, coverage: float | None
) -> Decided:
    """Decide a predictions file of a run again, and write it.

    Parameters
    ----------
    run : RunFolder
        The run that made the file.
    source : Path
        JSON lines.
    output : Path
    kind : str
        Format of the output, one of `llmcls.results.prediction_formats.FORMATS`.
    precision : float, optional
        Keep only decisions that are right this often.
    coverage : float, optional
        Give sets of labels with this coverage.

    Raises
    ------
    UserError
        If the run is not finished or has no validation predictions, or the file cannot be read.
    """
    labels = labels_of(run)
    require_few(labels, "llmcls decide")
    if not source.is_file():
        raise UserError(f"{source} does not exist; it is a file that llmcls predict wrote, in JSON lines")
    if "validation" not in run.predicted_splits():
        raise UserError(f"{run.path} has no validation predictions, and nothing else can be promised from")
    known = read_predictions(run.predictions("validation"), labels)
    true = known.true_marks(labels)
    abstention = None if precision is None else fit_abstention(known.probabilities, known.predicted, true, precision)
    sets = None if coverage is None else fit_label_sets(known.probabilities, true, coverage)
    tally = Tally()
    write_lines(_lines(source, labels, abstention, sets, tally), output, labels, kind)
    return Decided(abstention, sets, tally)


def _lines(
    source: Path, labels: LabelSpace, abstention: Abstention | None, sets: LabelSets | None, tally: Tally
) -> Iterator[str]:
    """The lines of the file, decided again; counts what happens in ``tally``."""
    for chunk in read_prediction_chunks(source, labels):
        kept = None if abstention is None else keep(chunk.probabilities, chunk.predicted, abstention)
        inside = None if sets is None else label_sets(chunk.probabilities, sets)
        tally.rows += len(chunk)
        tally.decisions += int(chunk.predicted.sum())
        tally.kept += 0 if kept is None else int(kept.sum())
        tally.labels_in_sets += 0 if inside is None else int(inside.sum())
        if chunk.true is not None:
            tally.known, marks = True, chunk.true_marks(labels)
            tally.right += 0 if kept is None else int((kept & marks).sum())
            if inside is not None:
                some = marks.any(axis=1)
                tally.covered += ((inside & marks)[some].sum(axis=1) / marks[some].sum(axis=1)).tolist()
        yield from prediction_lines(chunk, labels, kept, inside)
