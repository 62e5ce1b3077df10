"""Check the promises of `llmcls decide` on banking77: precision of kept labels and coverage of sets, on the test split.

    BANKING77_DIR=... python bench/selective.py

Probabilities of TF-IDF with a linear model, which takes seconds; the promises hold for any model. They are fitted on
validation and read on test. Writes bench/results.md and docs/images/unsure.svg.
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
from llmcls.results.pictures import COLOURS, INK, new_figure, save_pictures, style  # noqa: E402

PRECISIONS, COVERAGES = (0.9, 0.95, 0.98, 0.99), (0.8, 0.9, 0.95, 0.98)
PICTURE = ROOT / "docs" / "images" / "unsure"


def read(folder: Path, split: str) -> tuple[list[str], list[str]]:
    """Texts and classes of a split."""
    with (folder / f"{split}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["category"] for row in rows]


def draw(shares: list[float], reached: dict[str, list[tuple[float, float]]]) -> None:
    """Draw what was reached over what was promised, with the share of labels that are kept."""
    figure = new_figure((7, 3.4))
    for axes, (what, points) in zip(figure.subplots(1, 2), reached.items(), strict=True):
        low = min(min(point) for point in points) - 0.06
        axes.plot([low, 1], [low, 1], "--", color=INK, label="as promised")
        axes.plot(*zip(*points, strict=True), "o-", color=COLOURS[0], linewidth=2, label="on test")
        style(axes, what, "promised")
        axes.legend(frameon=False, labelcolor=INK, loc="lower right")
        if what.startswith("precision"):
            for (promised, found), share in zip(points, shares, strict=True):
                axes.annotate(
                    f"{share:.0%} kept", (promised, found), (-6, 6), textcoords="offset points", color=INK, ha="right"
                )
    save_pictures(PICTURE, figure)
    PICTURE.with_suffix(".png").unlink()


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
    shares: list[float] = []
    points: dict[str, list[tuple[float, float]]] = {"precision of the kept labels": [], "coverage of the sets": []}
    precisions, coverages = points.values()
    for target in PRECISIONS:
        kept = keep(new, decided, fit_abstention(*known, target))
        if kept.any():
            shares.append(kept.sum() / len(new))
            precisions.append((target, float(true[kept].mean())))
        reached = f"{true[kept].mean():.3f}" if kept.any() else "nothing can be promised"
        lines.append(f"| {target:g} | {kept.sum() / len(new):.1%} | {reached} |")
    lines += ["", "| promised coverage | coverage | labels in a set |", "|---|---|---|"]
    for coverage in COVERAGES:
        sets = label_sets(new, fit_label_sets(known[0], known[2], coverage))
        coverages.append((coverage, float(sets[true].mean())))
        lines.append(f"| {coverage:g} | {sets[true].mean():.3f} | {sets.sum(axis=1).mean():.2f} |")
    draw(shares, points)
    write_section("Unsure texts", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
