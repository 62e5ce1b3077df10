"""Render sample reports with 2, 10, 77 and 1,000 labels, and take pictures of them with Chromium.

``python docs/make_report_pictures.py --out FOLDER [--banking77 FOLDER] [--readme]``

For every sample, the reports of a run and of all its seeds are photographed light and dark, 360 and 1,400 pixels wide,
and printed. With ``--readme``, the two pictures of the README are written again. The predictions are drawn around the
true labels, and those of the 77 classes, if the folder is given, are of TF-IDF with naive Bayes on the texts of
banking77. A test does not need it: look at the pictures after a change of the report.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.special import expit, softmax

from llmcls.common.files import write_json, write_text
from llmcls.data.labels import LabelSpace, multi_hot
from llmcls.data.splits import Split
from llmcls.datasets.products import TOPICS, write_data
from llmcls.evaluation.baseline_store import Baseline
from llmcls.evaluation.calibration import Calibration, save_calibration
from llmcls.evaluation.metrics import evaluate_predictions
from llmcls.evaluation.outcome import Evaluation, uncertainty
from llmcls.evaluation.rule_comparison import compare_rules
from llmcls.evaluation.thresholds import Thresholds, apply_thresholds, fixed_thresholds, save_thresholds
from llmcls.evaluation.tuning import Tuning, tune_thresholds
from llmcls.recipe.load import load_recipe, recipe_to_yaml
from llmcls.recipe.schema import Recipe
from llmcls.results.predictions import write_predictions
from llmcls.results.report import render_experiment_report, render_report
from llmcls.results.run_folder import ExperimentFolder, RunFolder, recipe_of_run

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
SEEDS = (1, 2, 3)
TALLEST = 14_000


@dataclass(frozen=True)
class Sample:
    """Texts, labels and predictions of a report.

    Attributes
    ----------
    labels : LabelSpace
    texts : dict of list of str
        By split.
    values : dict of array
        Label values as in a `Split`.
    probabilities : callable
        From a split and a seed to float32 [rows, labels].
    """

    labels: LabelSpace
    texts: dict[str, list[str]]
    values: dict[str, np.ndarray]
    probabilities: Callable[[str, int], np.ndarray]


def drawn(values: dict[str, np.ndarray], labels: LabelSpace, skill: float) -> Callable[[str, int], np.ndarray]:
    """Probabilities drawn around the true labels; some labels are harder than others."""
    hardness = np.random.default_rng(7).uniform(0.5, 1.5, len(labels.names))

    def of(split: str, seed: int) -> np.ndarray:
        rng = np.random.default_rng([seed, len(split)])
        marks = multi_hot(values[split], len(labels.names))
        # What is hard in a text is hard for every seed.
        common = np.random.default_rng(len(split)).normal(0, 1.6, marks.shape)
        logits = skill * (marks * 2 - 1) / hardness + common + rng.normal(0, 0.7, marks.shape)
        if labels.multi_label:
            return np.asarray(expit(logits - 0.7), dtype=np.float32)
        return np.asarray(softmax(logits * (1 + np.log10(len(labels.names))), axis=1), dtype=np.float32)

    return of


def two() -> Sample:
    """A binary task: is a message a complaint?"""
    rng = np.random.default_rng(2)
    values = {split: (rng.random(rows) < 0.3).astype(np.int64) for split, rows in (("validation", 200), ("test", 400))}
    complaint = ["The parcel came late and the box was open.", "I have asked twice and nobody answered.",
                 "You charged me twice for one ticket.", "The handle broke on the first day."]  # fmt: skip
    other = ["Thank you, that was quick.", "When do you open on Sundays?", "Please change my address to the new one.",
             "Is the blue one in stock again?"]  # fmt: skip
    texts = {
        split: [f"{(complaint if v else other)[int(rng.integers(4))]} (message {i})" for i, v in enumerate(found)]
        for split, found in values.items()
    }
    labels = LabelSpace(["not_complaint", "complaint"], ["complaint"], "binary_classification")
    return Sample(labels, texts, values, drawn(values, labels, 2.0))


def ten(folder: Path) -> Sample:
    """The product texts of the demo, any of ten labels each."""
    write_data(folder, 3, {"validation": 300, "test": 600})
    texts, values = {}, {}
    for split in ("validation", "test"):
        with (folder / f"{split}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        texts[split] = [f"{row['title']}. {row['description']}" for row in rows]
        values[split] = np.array([[float(row[name]) for name in TOPICS] for row in rows], dtype=np.float32)
    labels = LabelSpace(list(TOPICS), list(TOPICS), "multi_label_classification")
    return Sample(labels, texts, values, drawn(values, labels, 3.3))


def banking77(folder: Path) -> Sample:
    """77 intents of customers of a bank, predicted by TF-IDF with naive Bayes; a seed draws 5,000 training texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.naive_bayes import MultinomialNB

    tables = {}
    for split in ("train", "validation", "test"):
        with (folder / f"{split}.csv").open(encoding="utf-8", newline="") as file:
            tables[split] = list(csv.DictReader(file))
    names = sorted({row["category"] for row in tables["train"]})
    number = {name: i for i, name in enumerate(names)}
    texts = {split: [row["text"] for row in rows] for split, rows in tables.items()}
    values = {split: np.array([number[row["category"]] for row in rows]) for split, rows in tables.items()}
    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))
    counts = vectorizer.fit_transform(texts["train"])

    def of(split: str, seed: int) -> np.ndarray:
        rows = np.random.default_rng(seed).permutation(len(texts["train"]))[:5000]
        model = MultinomialNB(alpha=0.02).fit(counts[rows], values["train"][rows])
        found = model.predict_log_proba(vectorizer.transform(texts[split]))
        return np.asarray(softmax(found * 3, axis=1), dtype=np.float32)

    labels = LabelSpace(names, ["category"], "single_label_classification", names)
    kept = ("validation", "test")
    return Sample(labels, {s: texts[s] for s in kept}, {s: values[s] for s in kept}, of)


def many(count: int, rows: int) -> Sample:
    """Many classes, some of them rare."""
    rng = np.random.default_rng(count)
    share = 1 / np.arange(1, count + 1) ** 0.7
    names = [f"topic {i + 1:04} {'/'.join(('news', 'sport', 'science', 'culture')[i % 4 :])}" for i in range(count)]
    values = {
        split: rng.choice(count, size=n, p=share / share.sum())
        for split, n in (("validation", rows // 2), ("test", rows))
    }
    texts = {
        split: [f"A text about {names[v]}, number {i}." for i, v in enumerate(found)] for split, found in values.items()
    }
    labels = LabelSpace(names, ["topic"], "single_label_classification", names)
    return Sample(labels, texts, values, drawn(values, labels, 4.5))


def recipe_of(name: str, sample: Sample, folder: Path) -> Recipe:
    """A recipe over the tables of a sample."""
    files = {}
    for split, texts in sample.texts.items():
        path = folder / f"{split}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([["id", "text"], *([f"{split}-{i}", text] for i, text in enumerate(texts))])
        files[split] = str(path)
    lines = {
        "data": {
            "dataset_name": name, "id_column": "id", "text_fields": ["text"], "label_columns": sample.labels.columns,
            "train_csv": files["test"], "val_csv": files["validation"], "test_csv": files["test"], "max_length": 128,
        },
        "model": {"model_name": "sample-llm", "problem_type": sample.labels.problem_type},
        "train": {"num_train_epochs": 4, "learning_rate": 2e-4},
        "exp": {"output_root": str(folder / "outputs"), "seeds": list(SEEDS)},
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(lines), encoding="utf-8")
    return load_recipe(path)


def write_sample(name: str, sample: Sample, folder: Path) -> list[RunFolder]:
    """Write the finished runs of a sample as a training does; returns them."""
    recipe = recipe_of(name, sample, folder)
    experiment = ExperimentFolder.of(recipe)
    marks = {split: multi_hot(values, len(sample.labels.names)) for split, values in sample.values.items()}
    store_baselines(experiment, sample, marks)
    return [write_run(experiment.run(i), recipe, sample, seed) for i, seed in enumerate(SEEDS)]


def store_baselines(experiment: ExperimentFolder, sample: Sample, marks: dict[str, np.ndarray]) -> None:
    """Baselines whose decisions are the labels with more or fewer mistakes."""
    found = {}
    for name, share in (("majority", None), ("tfidf_linear", 0.30), ("probe", 0.22)):
        decisions, metrics = {}, {}
        for split, true in marks.items():
            rng = np.random.default_rng(len(name))
            if share is None:
                decided = np.tile(np.arange(true.shape[1]) == true.mean(axis=0).argmax(), (len(true), 1))
            elif sample.labels.multi_label:
                wrong = rng.random(true.shape) < share * true.mean(axis=0) * 1.6
                decided = np.where(wrong, ~true, true)
            else:
                other = rng.random(len(true)) < share
                decided = np.where(other[:, None], true[rng.permutation(len(true))], true)
            scores = decided * 0.8 + 0.1
            decisions[split] = decided
            metrics[split] = evaluate_predictions(
                scores.astype(np.float32), sample.values[split], decided, sample.labels.names, sample.labels.binary
            )
        found[name] = Baseline(metrics, decisions)
    experiment.baselines.write("texts", "sample", found)


def write_run(run: RunFolder, recipe: Recipe, sample: Sample, seed: int) -> RunFolder:
    """Write the files of one seed."""
    labels, names = sample.labels, sample.labels.names
    own = recipe_of_run(recipe, seed)
    for path in (run.recipe, run.model_recipe):
        write_text(path, recipe_to_yaml(own))
    write_json(run.labels, asdict(labels))
    probabilities = {split: sample.probabilities(split, seed) for split in sample.values}
    marks = {split: multi_hot(values, len(names)) for split, values in sample.values.items()}
    thresholds: Thresholds = fixed_thresholds(len(names))
    if labels.multi_label or labels.binary:
        thresholds = tune_thresholds(probabilities["validation"], marks["validation"], labels, Tuning.of(own.train))
    save_thresholds(run.thresholds, thresholds, names)
    save_calibration(run.calibration, Calibration())
    metrics: dict[str, Any] = {
        "seed": seed, "steps": 480, "best_step": 360, "epochs": 4, "labels": names, "at_half": {}, "data": {},
        "training": {"seconds": 1260.0 + 40 * seed, "samples_per_second": 212.4, "tokens_per_second": 30120.0,
                     "loss": 0.04, "first_loss": 0.61},
        **thresholds.described(),
    }  # fmt: skip
    for split, values in sample.values.items():
        measured = {}
        for kind, decides in (("own", thresholds), ("half", fixed_thresholds(len(names)))):
            predicted = apply_thresholds(probabilities[split], decides, labels)
            measured[kind] = {"loss": 0.31} | evaluate_predictions(
                probabilities[split], values, predicted, names, labels.binary
            )
            if kind == "own":
                metrics[split] = measured[kind] | uncertainty(marks[split], predicted, labels)
                evaluation = Evaluation(probabilities[split], predicted, measured[kind])
                ids = [f"{split}-{i}" for i in range(len(values))]
                write_predictions(run.predictions(split), table_of(split, ids, values), evaluation, labels)
        metrics["at_half"][split] = {k: v for k, v in measured["half"].items() if not isinstance(v, dict)}
        counts = dict(zip(names, marks[split].sum(axis=0).tolist(), strict=True))
        metrics["data"][split] = {"rows": len(values), "labels": counts}
    metrics["data"] = {"train": {"rows": 12 * len(sample.values["test"]), "labels": {
        name: 12 * count for name, count in metrics["data"]["test"]["labels"].items()}}} | metrics["data"]  # fmt: skip
    scored = {split: (probabilities[split], marks[split]) for split in marks}
    metrics["threshold_rules"] = compare_rules(scored, labels, Tuning.of(own.train))
    metrics["history"] = write_log(run, metrics["validation"], seed)
    write_json(run.environment, {
        "llmcls": "0.1.0", "engine": "ddp", "processes": 2, "device": "NVIDIA H100", "mixed_precision": "bf16",
        "packages": {"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
    })  # fmt: skip
    write_json(run.metrics, metrics)
    return run


def table_of(split: str, ids: list[str], values: np.ndarray) -> Split:
    """A split with these ids."""

    class Ids:
        def __getitem__(self, rows: slice) -> dict[str, list[str]]:
            return {"id": ids[rows]}

    table: Any = Ids()
    return Split(split, f"{split}.csv", [], np.ones(len(ids), dtype=np.int32), values, table)


def write_log(run: RunFolder, final: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """Write metrics.jsonl of a training that approaches ``final``; returns its evaluations."""
    rng, lines, history = np.random.default_rng(seed), [], []
    scalars = {name: value for name, value in final.items() if isinstance(value, float)}
    for step in range(10, 481, 10):
        loss = 0.62 * np.exp(-step / 110) + 0.04 + rng.normal(0, 0.02 * np.exp(-step / 300))
        rate = 2e-4 * min(step / 30, 0.5 + 0.5 * np.cos(np.pi * max(0, step - 30) / 450))
        lines.append({
            "step": step, "split": "train", "time": 1.7956e9 + 3 * step, "loss": round(float(loss), 5),
            "learning_rate": float(rate), "samples_per_second": float(212 + rng.normal(0, 5)),
            "tokens_per_second": 30120.0, "epoch": step / 120,
        })  # fmt: skip
        if step % 60 == 0:
            reached = 1 - 0.9 * np.exp(-step / 90) + rng.normal(0, 0.006)
            found = {name: float(value * reached) for name, value in scalars.items()}
            found["loss"] = float(0.31 + 0.3 * np.exp(-step / 80) + 0.0002 * max(0, step - 300))
            half = {name: found[name] * 0.96 for name in ("f1_micro", "f1_macro", "f1_positive") if name in found}
            lines.append({"step": step, "split": "validation", "time": 1.7956e9 + 3 * step, **found, "at_half": half})
            history.append({"step": step, "train_loss": float(loss), "validation": found, "at_half": half,
                            "thresholds": "joint"})  # fmt: skip
    write_text(run.metrics_log, "".join(json.dumps(line) + "\n" for line in lines))
    return history


def photograph(page: Path, picture: Path, width: int, dark: bool, height: int = TALLEST) -> None:
    """A picture of a whole page, without the empty space below it."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},{height}"]
    options += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", f"--screenshot={picture}"]
    chromium(*options, page.resolve().as_uri())
    if height == TALLEST:
        with Image.open(picture) as image:
            whole = image.convert("RGB")
        pixels = np.asarray(whole)
        used = np.flatnonzero((pixels != pixels[-1, 0]).any(axis=(1, 2)))
        whole.crop((0, 0, whole.width, int(used[-1]) + 20)).save(picture, optimize=True)


def chromium(*arguments: str) -> None:
    """Run Chromium; its remarks are shown only if it fails."""
    program = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    if program is None:
        raise SystemExit("Chromium is not installed; it takes the pictures")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)


def print_page(page: Path, target: Path) -> None:
    """The page as PDF, and as pictures of its paper pages if pdftoppm is installed."""
    chromium(
        "--headless", "--no-sandbox", "--no-pdf-header-footer", f"--print-to-pdf={target}", page.resolve().as_uri()
    )
    if shutil.which("pdftoppm"):
        subprocess.run(["pdftoppm", "-r", "60", "-png", str(target), str(target.with_suffix(""))], check=True)


def small(picture: Path, target: Path, box: tuple[int, int, int, int], width: int) -> None:
    """A part of a picture, with few colours, for the README."""
    with Image.open(picture) as image:
        part = image.convert("RGB").crop(box)
    part = part.resize((width, round(part.height * width / part.width)), Image.Resampling.LANCZOS)
    part.quantize(128, dither=Image.Dither.NONE).save(target, optimize=True)


def main(argv: list[str] | None = None) -> None:
    """Render the samples and photograph them."""
    parser = argparse.ArgumentParser(description="Pictures of sample reports.")
    parser.add_argument("--out", required=True, help="folder of the pictures")
    parser.add_argument("--banking77", help="folder with train.csv, validation.csv and test.csv of banking77")
    parser.add_argument("--only", choices=["2", "10", "77", "1000"], help="only this sample")
    parser.add_argument("--readme", action="store_true", help="write the pictures of the README too")
    arguments = parser.parse_args(argv)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        makers: dict[str, Callable[[], Sample]] = {
            "2": two,
            "10": lambda: ten(folder / "products"),
            "77": lambda: banking77(Path(arguments.banking77)) if arguments.banking77 else many(77, 1000),
            "1000": lambda: many(1000, 1500),
        }
        names = {"2": "messages", "10": "products", "77": "banking77" if arguments.banking77 else "topics77"}
        for count, maker in makers.items():
            if arguments.only in (None, count):
                runs = write_sample(names.get(count, "topics1000"), maker(), folder / count)
                pages = {f"{count}-run": render_report(runs[0]), f"{count}-seeds": render_experiment_report(runs)}
                for name, page in pages.items():
                    shutil.copy(page, out / f"{name}.html")
                    print(f"{name}: {page.stat().st_size / 1000:.0f} kB")
                    for width in (360, 1400):
                        for theme in ("light", "dark"):
                            photograph(page, out / f"{name}-{width}-{theme}.png", width, theme == "dark")
                    print_page(page, out / f"{name}.pdf")
    if arguments.readme:
        small(out / "10-seeds-1400-light.png", IMAGES / "report-result.png", (140, 0, 1260, 870), 840)
        small(out / "10-seeds-1400-dark.png", IMAGES / "report-training.png", (140, 1000, 1260, 2150), 840)


if __name__ == "__main__":
    main()
