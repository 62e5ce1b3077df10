"""Compare the rules for decision thresholds: tuned on validation, measured on test.

    REUTERS_DIR=... BANKING_DIR=... python bench/thresholds.py [RUN ...]

RUN is a finished multi-label run, whose predictions are read; nothing is trained. Beside the runs, TF-IDF with a linear
model scores Reuters (all and 300 training texts) and banking77 (each class as a label of its own, because a task with
one class per text needs no thresholds). Sets whose folder is not given are left out. Writes bench/results.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.material import machine, write_section  # noqa: E402
from llmcls.data.labels import LabelSpace  # noqa: E402
from llmcls.data.tables import read_table  # noqa: E402
from llmcls.evaluation.baselines import tfidf_linear  # noqa: E402
from llmcls.evaluation.rule_comparison import figures  # noqa: E402
from llmcls.evaluation.thresholds import apply_thresholds  # noqa: E402
from llmcls.evaluation.tuning import Tuning, tune_thresholds  # noqa: E402
from llmcls.results.finished_runs import open_run  # noqa: E402
from llmcls.results.predictions import read_predictions  # noqa: E402
from llmcls.results.run_folder import RunFolder  # noqa: E402

# The rules, in the words of the table. "auto" is the default, for three metrics of choice.
RULES = {
    "0.5": Tuning("fixed"),
    "shared": Tuning("global"),
    "per class": Tuning("per_class", shrinkage=0),
    "per class, shrinkage 20": Tuning("per_class"),
    "joint for micro-F1": Tuning("joint", shrinkage=0, serves="f1_micro"),
    "joint for micro-F1, shrinkage 20": Tuning("joint", serves="f1_micro"),
    "joint for samples-F1": Tuning("joint", shrinkage=0, serves="f1_samples"),
    "joint for samples-F1, shrinkage 20": Tuning("joint", serves="f1_samples"),
    "auto for micro-F1": Tuning(serves="f1_micro"),
    "auto for macro-F1": Tuning(serves="f1_macro"),
    "auto for samples-F1": Tuning(serves="f1_samples"),
}
METRICS = ("f1_micro", "f1_macro", "f1_samples")
# Validation rows of a small validation file, and how many such files are drawn.
FEW, DRAWS = 100, 10

# Probabilities [rows, labels] and true labels [rows, labels] of each split.
Scored = dict[str, tuple[np.ndarray, np.ndarray]]


def of_run(path: Path) -> tuple[str, LabelSpace, Scored]:
    """Name, labels and scores of a finished run."""
    run = open_run(RunFolder(path))
    found = {s: read_predictions(run.folder.predictions(s), run.labels) for s in ("validation", "test")}
    model = Path(run.recipe.model.model_name).name
    kind = f"LoRA r {run.recipe.model.lora_r}" if run.recipe.model.lora_r else "all weights"
    name = f"{run.recipe.data.dataset_name}: {model}, {kind}, {run.recipe.train.loss.replace('_', '-')}"
    return name, run.labels, {s: (p.probabilities, p.true_marks(run.labels)) for s, p in found.items()}


def of_tfidf(name: str, folder: str, text_columns: list[str], rows: int | None) -> tuple[str, LabelSpace, Scored]:
    """Name, labels and scores of TF-IDF with a linear model; with ``rows``, trained on so many texts."""
    tables = {s: read_table(str(Path(folder) / f"{s}.csv"), s) for s in ("train", "validation", "test")}
    columns = [c for c in tables["train"].column_names if c not in (*text_columns, "uid", "id")]
    classes = sorted(set(tables["train"][columns[0]])) if len(columns) == 1 else None
    texts, marks = {}, {}
    for split, table in tables.items():
        cells = [[value or "" for value in table[c][:]] for c in text_columns]
        texts[split] = ["\n".join(parts) for parts in zip(*cells, strict=True)]
        values = [[str(v) == c for v in table[columns[0]][:]] for c in classes] if classes else None
        values = values or [[str(v) == "1" for v in table[c][:]] for c in columns]
        marks[split] = np.array(values).T
    names = classes or columns
    labels = LabelSpace(names, names, "multi_label_classification")
    if rows:
        chosen = np.random.default_rng(0).choice(len(texts["train"]), rows, replace=False)
        texts["train"], marks["train"] = [texts["train"][i] for i in chosen], marks["train"][chosen]
    scores = tfidf_linear(texts, marks["train"].astype(np.float32), labels)
    return (
        f"{name}: TF-IDF + linear, {len(texts['train']):,} texts",
        labels,
        {s: (scores[s], marks[s]) for s in scores},
    )


def reached(tuning: Tuning, labels: LabelSpace, scored: Scored, rows: np.ndarray) -> list[float]:
    """`METRICS` on test, with thresholds tuned on some validation rows."""
    probabilities, marks = scored["validation"]
    thresholds = tune_thresholds(probabilities[rows], marks[rows], labels, tuning)
    found = figures(scored["test"][1], apply_thresholds(scored["test"][0], thresholds, labels), labels)
    return [found[name] for name in METRICS]


def table(labels: LabelSpace, scored: Scored) -> list[str]:
    """One line per rule: test F1 with all validation rows, and the mean over small validation sets."""
    count = len(scored["validation"][1])
    draws = [np.random.default_rng(i).choice(count, min(FEW, count), replace=False) for i in range(DRAWS)]
    lines = [
        f"| thresholds | micro | macro | samples | micro, {FEW} rows | macro, {FEW} rows | samples, {FEW} rows |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, tuning in RULES.items():
        whole = reached(tuning, labels, scored, np.arange(count))
        few = np.mean([reached(tuning, labels, scored, rows) for rows in draws], axis=0)
        lines.append(f"| {name} | " + " | ".join(f"{value:.4f}" for value in [*whole, *few]) + " |")
    return lines


def main() -> None:
    """Compare, print the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    arguments = parser.parse_args()
    sets = [of_run(path) for path in arguments.runs]
    if folder := os.environ.get("REUTERS_DIR"):
        sets += [of_tfidf("reuters10", folder, ["title", "body"], rows) for rows in (None, 300)]
    if folder := os.environ.get("BANKING_DIR"):
        sets.append(of_tfidf("banking77, each class a label", folder, ["text"], None))
    if not sets:
        sys.exit("error: nothing to compare; name a finished run, or set REUTERS_DIR or BANKING_DIR")
    lines = [
        f"{machine()}. Test F1 with thresholds tuned on validation: on the whole of it, and the mean of {DRAWS} draws",
        f"of {FEW} validation rows. Only `auto` chooses, and it chooses on validation.",
    ]
    for name, labels, scored in sets:
        lines += ["", f"{name}; {len(scored['validation'][1]):,} validation rows:", "", *table(labels, scored)]
        print("\n".join(lines[-len(RULES) - 4 :]), flush=True)
    write_section("Thresholds", lines)


if __name__ == "__main__":
    main()
