"""The texts of a report: the most confident mistakes, and labels of the data that are probably wrong."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmcls.common.user_error import UserError
from llmcls.evaluation.bootstrap import Marks
from llmcls.evaluation.mistakes import confident_mistakes, excerpt, label_errors
from llmcls.results.error_analysis import read_texts
from llmcls.results.report_source import Source

SHOWN = 20
LONGEST = 400


def texts_to_look_at(source: Source) -> dict[str, Any]:
    """Confident mistakes and probable label errors of the last split, by the mean probabilities of the seeds.

    Returns
    -------
    dict
        "mistakes" and "label_errors", as of `llmcls.evaluation.mistakes`, the first `SHOWN` of each, "counts" of all,
        and "problem", why there are no texts. Empty without predictions.
    """
    labels = source.labels
    if not source.predictions or any(found.ids != source.predictions[0].ids for found in source.predictions):
        return {}
    ids, true = source.predictions[0].ids, source.predictions[0].true_marks(labels)
    probabilities = source.mean_probabilities
    text_of, problem = _texts(source)
    none: dict[str, str] = {}
    mistakes = confident_mistakes(ids, probabilities, true, _agreed(source), labels, none)
    errors = label_errors(ids, probabilities, true, labels, none)
    if not labels.multi_label:
        # A wrong class is two wrong cells.
        errors = list({found["id"]: found for found in reversed(errors)}.values())[::-1]
    for found in (*mistakes[:SHOWN], *errors[:SHOWN]):
        found["text"] = excerpt(text_of.get(found["id"], ""), LONGEST)
    return {
        "mistakes": mistakes[:SHOWN], "label_errors": errors[:SHOWN], "problem": problem,
        "counts": {"mistakes": len(mistakes), "label_errors": len(errors), "rows": len(ids)},
    }  # fmt: skip


def _agreed(source: Source) -> Marks:
    """What most seeds decided, bool [rows, labels]; of classes, the most probable one on average."""
    if source.labels.many:
        votes: Any = sum(found.predicted.astype(np.float32) for found in source.predictions)
        return votes > len(source.seeds) / 2
    if source.labels.multi_label or len(source.seeds) == 1:
        return np.asarray(np.mean([found.predicted for found in source.predictions], axis=0) > 0.5)
    best = source.mean_probabilities.argmax(axis=1)
    return np.asarray(np.arange(len(source.labels.names)) == best[:, None])


def _texts(source: Source) -> tuple[dict[str, str], str | None]:
    """The texts by row id, and why there are none: the table was moved or changed since."""
    try:
        found = read_texts(source.recipe, source.splits[-1])
    except UserError as error:
        return {}, str(error)
    except (KeyError, ValueError) as error:
        return {}, f"the table has changed since the training ({error})"
    return dict(zip(found.ids, found.texts, strict=True)), None
