"""The labels that a run saved, in labels.json."""

from __future__ import annotations

import typing
from pathlib import Path

from llmcls.common.files import read_json
from llmcls.common.user_error import UserError
from llmcls.data.labels import LabelSpace
from llmcls.data.marks import MANY_LABELS
from llmcls.recipe.schema import ProblemType


def require_few(labels: LabelSpace, command: str) -> None:
    """Refuse a run with many labels, of which only the most probable ones of each text are known.

    Parameters
    ----------
    labels : LabelSpace
    command : str
        What needs the probabilities of all labels.

    Raises
    ------
    UserError
        If there are more than `MANY_LABELS`.
    """
    if labels.many:
        raise UserError(
            f"{command} needs the probabilities of all labels; this run has {len(labels.names):,}, and above "
            f"{MANY_LABELS:,} only the most probable ones of each text are kept"
        )


def read_label_space(path: Path) -> LabelSpace:
    """The labels that a run saved.

    Raises
    ------
    UserError
        If the file is missing or does not describe labels.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; restore it, or train the run again")
    saved = read_json(path)
    try:
        labels = LabelSpace(**saved)
    except TypeError:
        raise UserError(f"{path} is damaged: it does not describe labels; restore it") from None
    lists = [labels.names, labels.columns, [] if labels.class_values is None else labels.class_values]
    texts = [labels.separator or "", labels.hierarchy or ""]
    sound = all(isinstance(one, list) and all(isinstance(name, str) for name in one) for one in lists)
    sound = sound and all(isinstance(text, str) for text in texts)
    sound = sound and labels.problem_type in typing.get_args(ProblemType) and bool(labels.names and labels.columns)
    if not sound or len(set(labels.names)) != len(labels.names):
        raise UserError(f"{path} is damaged: it does not describe labels; restore it")
    return labels
