"""Measure a task with 13,330 labels against one with ten: memory of training, prediction and errors, and time per row.

    python bench/many_labels.py [--rows 50000] [--labels 13330] [--steps 100]

The texts are synthetic. Labels follow Zipf's law, five of them on a row on average as in AmazonCat-13K, and a text
names its labels among other words. Both tasks have the same texts and the same two-layer model; the small one keeps the
ten most frequent labels. Each command runs in its own process, whose peak memory the system reports. P@k and PSP@k in
metrics.json are computed again, row by row, from the predictions.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.material import machine, write_section  # noqa: E402
from llmcls.model.tiny import write_tiny_llama  # noqa: E402

PER_ROW, WORDS = 5, 12
SMALL = 10
RECIPE = """
data:
  dataset_name: labels_{count}
  id_column: uid
  target_text_column: text
  label_columns: [labels]
  label_separator: "|"
  max_length: 128
  train_csv: {folder}/train_{count}.csv
  val_csv: {folder}/validation_{count}.csv
  test_csv: {folder}/test_{count}.csv
model: {{model_name: {folder}/model, torch_dtype: float32, lora_r: 8}}
train:
  batch_size: 32
  gradient_accumulation_steps: 1
  max_steps: {steps}
  learning_rate: 0.003
  train_metrics_rows: 2000
  metric_for_best_model: {metric}
  report_to: []
exp: {{output_root: {folder}/outputs, seeds: [1], baselines: null}}
"""


@dataclass(frozen=True)
class Spent:
    """Wall-clock and CPU seconds, and peak memory in GiB, of a process."""

    seconds: float
    cpu: float
    peak: float


@dataclass(frozen=True)
class Task:
    """A number of labels, and whether they are many; the optimizer steps; and where the files are."""

    folder: Path
    labels: int
    steps: int
    many: bool


def label_name(number: int) -> str:
    """A name of three syllables that no other label has."""
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    parts = []
    for _ in range(3):
        number, rest = divmod(number, len(syllables))
        parts.append(syllables[rest])
    return "".join(reversed(parts))


def write_texts(folder: Path, rows: int, labels: int) -> None:
    """Write train (80 %), validation and test, and all rows together, with all labels and with the most frequent."""
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, labels + 1)
    # Each label of the tail has a row.
    lengths = np.maximum(1, rng.poisson(PER_ROW, rows))
    drawn = rng.choice(labels, lengths.sum(), p=shares / shares.sum())
    numbers = [np.unique(part) for part in np.split(drawn, np.cumsum(lengths)[:-1])]
    for label in range(min(labels, int(0.8 * rows))):
        numbers[label] = np.append(numbers[label], label)
    names = [label_name(label) for label in range(labels)]
    parts = {"train": range(int(0.8 * rows)), "validation": range(int(0.8 * rows), int(0.9 * rows)),
             "test": range(int(0.9 * rows), rows), "all": range(rows)}  # fmt: skip
    texts = []
    for row in numbers:
        words = [names[label] for label in row] + [f"word{n}" for n in rng.integers(300, size=WORDS)]
        texts.append(" ".join(words[i] for i in rng.permutation(len(words))))
    for count in (labels, SMALL):
        for part, members in parts.items():
            with (folder / f"{part}_{count}.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["uid", "text", "labels"])
                for row in members:
                    kept = "|".join(names[label] for label in np.unique(numbers[row]) if label < count)
                    writer.writerow([f"r{row}", texts[row], kept])


def run(folder: Path, name: str, *arguments: str) -> Spent:
    """Run a command of llmcls in a process of its own."""
    environment = os.environ | {"HF_DATASETS_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    log = os.open(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    command = [sys.executable, "-m", f"llmcls.{name}", *arguments]
    process = os.posix_spawn(
        sys.executable, command, environment,
        file_actions=[(os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)],
    )  # fmt: skip
    _, status, used = os.wait4(process, 0)
    os.close(log)
    if status:
        sys.exit((folder / f"{name}.log").read_text(encoding="utf-8")[-4000:])
    spent = Spent(time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20)
    print(f"{name}: {spent}", file=sys.stderr, flush=True)
    return spent


def ranked_again(path: Path, counts: dict[str, int], rows: int) -> dict[str, float]:
    """P@k and PSP@k of a predictions file, row by row, with the propensities of pyxclib."""
    c = (np.log(rows) - 1) * np.power(1.5 + 1, 0.55)
    weight = {name: 1.0 + c * np.power(count + 1.5, -0.55) for name, count in counts.items()}
    hits, total = dict.fromkeys((1, 3, 5), 0), 0
    reached, possible = dict.fromkeys(hits, 0.0), dict.fromkeys(hits, 0.0)
    for text in path.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        ranked, true = list(line["probabilities"]), set(line["true"])
        total += 1
        for k in hits:
            hits[k] += len(true & set(ranked[:k]))
            reached[k] += sum(weight[name] for name in ranked[:k] if name in true)
            possible[k] += sum(sorted((weight[name] for name in true), reverse=True)[:k])
    return {f"precision_at_{k}": hits[k] / (k * total) for k in hits} | {
        f"propensity_precision_at_{k}": reached[k] / possible[k] for k in hits
    }


def measure(task: Task) -> dict[str, Any]:
    """Train, predict all rows and list errors."""
    folder, count = task.folder, task.labels
    recipe, output = folder / f"recipe_{count}.yaml", folder / f"predictions_{count}.jsonl"
    metric = "precision_at_5" if task.many else "f1_micro"
    recipe.write_text(RECIPE.format(folder=folder, count=count, steps=task.steps, metric=metric), encoding="utf-8")
    trained = run(folder, "train", str(recipe))
    out = next((folder / "outputs").glob(f"*/labels_{count}/run_0"))
    source = str(folder / f"all_{count}.csv")
    predicted = run(folder, "predict", "--run", str(out), "--input", source, "--output", str(output))
    errors = run(folder, "errors", "--run", str(out))
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = {"train": trained, "predict": predicted, "errors": errors, "metrics": metrics}
    found["bytes"] = {p.name: p.stat().st_size for p in (output, out / "metrics.json", out / "report.html")}
    if task.many:
        training = metrics["data"]["train"]
        again = ranked_again(out / "predictions_test.jsonl", training["labels"], training["rows"])
        found["difference"] = max(abs(metrics["test"][name] - value) for name, value in again.items())
    return found


def main() -> None:
    """Measure both tasks and write the section of results.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--labels", type=int, default=13_330)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--keep", type=Path, help="a folder for the data and the runs")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = a.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        write_texts(folder, a.rows, a.labels)
        with (folder / f"train_{a.labels}.csv").open(encoding="utf-8") as file:
            texts = [row["text"] for row, _ in zip(csv.DictReader(file), range(2000), strict=False)]
        write_tiny_llama(folder / "model", texts, seed=0, steps=20)
        found = {n: measure(Task(folder, n, a.steps, n == a.labels)) for n in (a.labels, SMALL)}
    lines = [
        f"{machine()}. {a.rows:,} synthetic texts ({0.8 * a.rows:,.0f} for training), {PER_ROW} labels on a text by "
        f"Zipf's law, two layers of width 96, LoRA r 8, float32, {a.steps} optimizer steps of 32 texts. Prediction is "
        "of all texts, with the start of the command.",
        "",
        "| | " + " | ".join(f"{count:,} labels" for count in found) + " |",
        "|---|" + "---|" * len(found),
    ]
    for name in ("train", "predict", "errors"):
        cells = [f"{f[name].peak:.2f} GiB, {f[name].cpu:.0f} s" for f in found.values()]
        lines.append(f"| `llmcls {name}`: peak memory, CPU time | {' | '.join(cells)} |")
    prediction = [1000 * f["predict"].cpu / a.rows for f in found.values()]
    lines.append("| prediction, ms of CPU time per text | " + " | ".join(f"{value:.2f}" for value in prediction) + " |")
    for name in ("predictions_{}.jsonl", "metrics.json", "report.html"):
        sizes = [f["bytes"][name.format(count)] / 2**20 for count, f in found.items()]
        lines.append(f"| {name.replace('_{}', '')}, MiB | " + " | ".join(f"{size:.1f}" for size in sizes) + " |")
    many = found[a.labels]
    lines += [
        "",
        f"P@k and PSP@k of the test split, computed again row by row from the predictions, differ by at most "
        f"{many['difference']:.1e}.",
    ]
    print("\n".join(lines))
    if (a.rows, a.labels) == (50_000, 13_330):
        write_section("Many labels", lines)


if __name__ == "__main__":
    main()
