"""Look at mistakes: ``python -m llmcls.errors --run RUN`` shows where a model is sure and wrong, which labels of the
data are probably wrong, and which test texts were nearly seen in training.

Probabilities are the mean over all finished seeds beside the run; none of them saw the rows looked at.
"""

from __future__ import annotations

import argparse
import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmcls import UserMistake, run_command
from llmcls.encoding import whole_texts
from llmcls.files import write_json
from llmcls.labels import LabelSpace, as_marks
from llmcls.recipe import Recipe, load_recipe
from llmcls.runs import labels_of, predicted_splits, read_predictions, runs_in
from llmcls.tables import cell_text, read_table

FILES = {"train": "train_csv", "validation": "val_csv", "test": "test_csv"}


@dataclass
class Texts:
    """A split's texts by row. ids: as in the predictions."""

    ids: list[str]
    texts: list[str]


def main(argv: list[str] | None = None) -> None:
    """Print the findings, and write all of them beside the run as errors_<split>.json."""
    parser = argparse.ArgumentParser(prog="llmcls.errors", description="Show a run's mistakes and the data's.")
    parser.add_argument("--run", required=True, help="a run folder, outputs/.../run_0")
    parser.add_argument("--split", choices=["validation", "test"], help="default: test if the run predicted it")
    parser.add_argument("--top", type=int, default=10, help="how many of each kind to print")
    parser.add_argument("--similar", type=float, default=0.9, help="cosine from which two texts are near-duplicates")
    a = parser.parse_args(argv)
    run = Path(a.run)
    labels = labels_of(run)
    splits = predicted_splits(run)
    split = a.split or next((s for s in ("test", "validation") if s in splits), None)
    if split not in splits:
        raise UserMistake(
            f"{run} has no predictions of {a.split or 'validation or test'}; its recipe names no such file"
        )
    if not 0 < a.similar <= 1 or a.top < 1:
        raise UserMistake("--similar must be above 0 and at most 1, and --top at least 1")
    recipe = load_recipe(run / "recipe.yaml")
    found = find_errors(run, split, labels, recipe, a.similar)
    path = run / f"errors_{split}.json"
    write_json(path, found)
    for line in describe(found, a.top):
        print(line)
    print(f"all of them: {path}")


def find_errors(run: Path, split: str, labels: LabelSpace, recipe: Recipe, similar: float) -> dict[str, Any]:
    """Confident mistakes, probable label errors and near-duplicates of a split, each the most telling first."""
    siblings = [r for r in runs_in(run.parent) if split in predicted_splits(r)] if run.parent.is_dir() else [run]
    siblings = [r for r in siblings if labels_of(r).names == labels.names] or [run]
    runs = [read_predictions(r, split, labels) for r in siblings]
    runs = [r for r in runs if r.ids == runs[0].ids]
    own = read_predictions(run, split, labels)
    probabilities = np.mean([r.probabilities for r in runs], axis=0)
    true = as_marks(own.true, labels)
    here, train = read_texts(recipe, split), read_texts(recipe, "train")
    text_of = dict(zip(here.ids, here.texts, strict=True))
    return {
        "seeds": len(runs),
        "mistakes": confident_mistakes(own.ids, probabilities, true, own.predicted, labels, text_of),
        "label_errors": label_errors(own.ids, probabilities, true, labels, text_of),
        "duplicates": near_duplicates(train, here, similar),
    }


def confident_mistakes(
    ids: list[str], probabilities: np.ndarray, true: np.ndarray, predicted: np.ndarray, labels: LabelSpace,
    text_of: dict[str, str],
) -> list[dict[str, Any]]:  # fmt: skip
    """Wrong decisions, the surest first: of each row its surest wrong label.

    Parameters
    ----------
    probabilities: float [rows, labels]. true, predicted: bool [rows, labels].
    """
    sure = np.where(predicted, probabilities, 1 - probabilities) * (predicted != true)
    rows = np.flatnonzero((predicted != true).any(axis=1))
    rows = rows[np.argsort(-sure[rows].max(axis=1), kind="stable")]
    return [
        {
            "id": ids[row],
            "label": labels.names[(label := int(sure[row].argmax()))],
            "said": bool(predicted[row, label]),
            "probability": float(probabilities[row, label]),
            "true": [n for n, on in zip(labels.names, true[row], strict=True) if on],
            "text": excerpt(text_of.get(ids[row], "")),
        }
        for row in rows
    ]


def label_errors(
    ids: list[str], probabilities: np.ndarray, true: np.ndarray, labels: LabelSpace, text_of: dict[str, str]
) -> list[dict[str, Any]]:
    """Given labels that are probably wrong, after confident learning (Northcutt et al. 2021), label by label.

    A cell is suspect when the model believes the other value, and about as much as it does of rows that have that
    value: to their mean less two standard deviations, since half of the honest rows lie below the mean itself.
    Ordered by how little the model believes the given value.
    """
    suspects = []
    for i, name in enumerate(labels.names):
        p, given = probabilities[:, i], true[:, i]
        if given.all() or not given.any():
            continue
        missing = ~given & (p >= max(0.5, p[given].mean() - 2 * p[given].std()))
        wrong = given & (p <= min(0.5, p[~given].mean() + 2 * p[~given].std()))
        for row in np.flatnonzero(missing | wrong):
            belief = float(p[row] if given[row] else 1 - p[row])
            suspects.append((belief, int(row), name, bool(given[row])))
    return [
        {"id": ids[row], "label": name, "given": given, "belief": belief, "text": excerpt(text_of.get(ids[row], ""))}
        for belief, row, name, given in sorted(suspects)
    ]


def near_duplicates(train: Texts, other: Texts, similar: float) -> list[dict[str, Any]]:
    """Texts of ``other`` that lie in ``train`` nearly word for word: cosine of their runs of three words.

    Hashed counts (no vocabulary in memory), multiplied in blocks of rows.
    """
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(
        ngram_range=(3, 3), token_pattern=r"(?u)\b\w+\b", alternate_sign=False, dtype=np.float32
    )
    known, found = vectorizer.transform(train.texts), vectorizer.transform(other.texts)
    pairs = []
    for start in range(0, found.shape[0], 512):
        product = (found[start : start + 512] @ known.T).tocsr()
        for i in range(product.shape[0]):
            row = product[i]
            if row.nnz and row.data.max() >= similar:
                best = int(row.data.argmax())
                pairs.append((float(row.data[best]), start + i, int(row.indices[best])))
    return [
        {"id": other.ids[i], "train_id": train.ids[j], "cosine": round(cosine, 4), "text": excerpt(other.texts[i])}
        for cosine, i, j in sorted(pairs, key=lambda pair: (-pair[0], pair[1]))
    ]


def read_texts(recipe: Recipe, split: str) -> Texts:
    """A split's ids and whole texts."""
    data = recipe.data
    table = read_table(getattr(data, FILES[split]), f"data.{FILES[split]}")
    texts = whole_texts(table, data)
    ids = [cell_text(v) for v in table[data.id_column][:]] if data.id_column else [str(i) for i in range(len(table))]
    return Texts(ids, texts)


def describe(found: dict[str, Any], top: int) -> list[str]:
    """The first ``top`` of each kind, a line each."""
    lines = [f"{len(found['mistakes'])} rows with a wrong decision; the surest (mean of {found['seeds']} seed(s)):"]
    for m in found["mistakes"][:top]:
        word = "said" if m["said"] else "missed"
        lines.append(f"  {m['id']}: {word} {m['label']} ({m['probability']:.3f}), true {m['true']}: {m['text']}")
    lines.append(f"{len(found['label_errors'])} labels that may be wrong in the data:")
    for e in found["label_errors"][:top]:
        given = "has" if e["given"] else "lacks"
        lines.append(f"  {e['id']}: {given} {e['label']}; the model believes that to {e['belief']:.3f}: {e['text']}")
    lines.append(f"{len(found['duplicates'])} texts that lie in the training file too, nearly word for word:")
    for d in found["duplicates"][:top]:
        lines.append(f"  {d['id']} ~ {d['train_id']} ({d['cosine']:.2f}): {d['text']}")
    return lines


def excerpt(text: str, width: int = 100) -> str:
    """The beginning of a text on one line."""
    line = " ".join(html.unescape(text).split())
    return line if len(line) <= width else line[: width - 1] + "…"


if __name__ == "__main__":
    run_command(main)
