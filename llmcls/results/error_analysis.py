"""What is wrong in a split: confident mistakes of the model, probable errors in the labels, texts seen in training."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmcls.data.encoding import whole_texts
from llmcls.data.holdout import rows_of_split
from llmcls.data.tables import cell_text, read_table
from llmcls.evaluation.mistakes import Texts, confident_mistakes, label_errors, near_duplicates
from llmcls.recipe.schema import SPLIT_KEYS, Recipe
from llmcls.results.finished_runs import FinishedRun, labels_of, runs_in
from llmcls.results.predictions import read_predictions


def find_errors(run: FinishedRun, split: str, similar: float) -> dict[str, Any]:
    """Confident mistakes, probable label errors and near-duplicates of a split, each in order of importance.

    Probabilities are the mean over all finished seeds of the experiment; none of them was trained on these rows.

    Parameters
    ----------
    run : FinishedRun
    split : str
        "validation" or "test".
    similar : float
        Cosine from which two texts are near-duplicates.

    Returns
    -------
    dict
        "seeds", "mistakes", "label_errors", "duplicates".
    """
    labels, folder = run.labels, run.folder
    siblings = [other for other in runs_in(folder.path.parent) if split in other.predicted_splits()]
    siblings = [other for other in siblings if labels_of(other).names == labels.names] or [folder]
    seeds = [read_predictions(other.predictions(split), labels) for other in siblings]
    seeds = [predictions for predictions in seeds if predictions.ids == seeds[0].ids]
    own = read_predictions(folder.predictions(split), labels)
    probabilities: Any
    if labels.many:
        probabilities = sum(predictions.probabilities for predictions in seeds) / len(seeds)
    else:
        probabilities = np.mean([predictions.probabilities for predictions in seeds], axis=0)
    true = own.true_marks(labels)
    texts, train_texts = read_texts(run.recipe, split), read_texts(run.recipe, "train")
    text_of = dict(zip(texts.ids, texts.texts, strict=True))
    return {
        "seeds": len(seeds),
        "mistakes": confident_mistakes(own.ids, probabilities, true, own.predicted, labels, text_of),
        "label_errors": label_errors(own.ids, probabilities, true, labels, text_of),
        "duplicates": near_duplicates(train_texts, texts, similar),
    }


def read_texts(recipe: Recipe, split: str) -> Texts:
    """The ids and whole texts of a split."""
    data = recipe.data
    table = read_table(data.files()[split], f"data.{SPLIT_KEYS[split]}", data)
    ids = [cell_text(v) for v in table[data.id_column][:]] if data.id_column else [str(i) for i in range(len(table))]
    texts, rows = whole_texts(table, data), rows_of_split(recipe, split)
    if rows is None:
        return Texts(ids, texts)
    return Texts([ids[row] for row in rows], [texts[row] for row in rows])


def error_lines(found: dict[str, Any], top: int) -> list[str]:
    """The first ``top`` findings of each kind, one line each."""
    lines = [f"{len(found['mistakes'])} rows with a wrong decision, most confident first ({found['seeds']} seed(s)):"]
    for m in found["mistakes"][:top]:
        word = "predicted" if m["said"] else "missed"
        lines.append(f"  {m['id']}: {word} {m['label']} ({m['probability']:.3f}), true {m['true']}: {m['text']}")
    lines.append(f"{len(found['label_errors'])} labels that may be wrong in the data:")
    for e in found["label_errors"][:top]:
        given = "has" if e["given"] else "lacks"
        lines.append(f"  {e['id']}: {given} {e['label']}; the model gives that {e['belief']:.3f}: {e['text']}")
    lines.append(f"{len(found['duplicates'])} texts that are also in the training file, nearly word for word:")
    for d in found["duplicates"][:top]:
        lines.append(f"  {d['id']} ~ {d['train_id']} ({d['cosine']:.2f}): {d['text']}")
    return lines
