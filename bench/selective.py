"""Check the promises of `llmcls decide` on banking77: precision of kept labels and coverage of sets, on the test split.

    BANKING77_DIR=... python bench/selective.py

Probabilities of TF-IDF with a linear model, which takes seconds; the promises hold for any model. They are fitted on
validation and read on test. Writes bench/results.md.
"""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.material import machine, write_section  # noqa: E402
from llmcls.evaluation.selective import fit_abstention, fit_label_sets, keep, label_sets  # noqa: E402

PRECISIONS, COVERAGES = (0.9, 0.95, 0.98, 0.99), (0.8, 0.9, 0.95, 0.98)


def read(folder: Path, split: str) -> tuple[list[str], list[str]]:
    """Texts and classes of a split."""
    with (folder / f"{split}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["category"] for row in rows]


def main() -> None:
    """Fit, check, print the tables and write them."""
    if "BANKING77_DIR" not in os.environ:
        sys.exit("error: BANKING77_DIR is not set; set it to the folder of train.csv, validation.csv and test.csv")
    folder = Path(os.environ["BANKING77_DIR"])
    texts, classes = read(folder, "train")
    names = sorted(set(classes))
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = LogisticRegression(C=20, max_iter=200).fit(vectorizer.fit_transform(texts), classes)
    assert list(model.classes_) == names
    scored = {}
    for split in ("validation", "test"):
        texts, classes = read(folder, split)
        marks = np.array([[name == one for name in names] for one in classes])
        probabilities = model.predict_proba(vectorizer.transform(texts)).astype(np.float32)
        scored[split] = probabilities, np.eye(len(names), dtype=bool)[probabilities.argmax(axis=1)], marks
    known, (new, decided, true) = scored["validation"], scored["test"]
    lines = [
        f"{machine()}. banking77, TF-IDF with a linear model, accuracy {true[decided].mean():.3f}; fitted on "
        f"{len(known[0]):,} validation texts, read on {len(new):,} test texts.",
        "",
        "| promised precision | kept | precision of the kept |",
        "|---|---|---|",
    ]
    for target in PRECISIONS:
        kept = keep(new, decided, fit_abstention(*known, target))
        reached = f"{true[kept].mean():.3f}" if kept.any() else "nothing can be promised"
        lines.append(f"| {target:g} | {kept.sum() / len(new):.1%} | {reached} |")
    lines += ["", "| promised coverage | coverage | labels in a set |", "|---|---|---|"]
    for coverage in COVERAGES:
        sets = label_sets(new, fit_label_sets(known[0], known[2], coverage))
        lines.append(f"| {coverage:g} | {sets[true].mean():.3f} | {sets.sum(axis=1).mean():.2f} |")
    write_section("Unsure texts", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
