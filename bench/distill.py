"""What a small model learns from a large one on banking77: ten labelled texts a class, and texts without labels.

    python bench/distill.py --run outputs/MODEL/banking77_10shot/run_0 --data BANKING77 [--texts 2000] [--seeds 1,2,3]

``--run`` is a finished run that was trained on train_10shot.csv. The texts without labels are the others of train.csv.
The student is a decoder of about a million random weights with a tokenizer of these texts (`llmcls scratch`); it is
trained with what the run says (`llmcls distill`), and for as many steps without. Prints accuracy on the test split and
texts per second of CPU time of all three, which other programs on the machine do not change, and writes
bench/results.md and docs/images/distilled.svg. Run the same command again to resume.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import multiprocessing
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.material import machine, write_section  # noqa: E402
from llmcls.results.pictures import COLOURS, INK, new_figure, save_pictures, style  # noqa: E402

# Parameters of a student may be this share of its teacher's.
LARGEST = 0.1
VOCABULARY, HIDDEN, LAYERS = 4096, 128, 2
PICTURE = ROOT / "docs" / "images" / "distilled"


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_texts(data: Path, out: Path, most: int | None) -> Path:
    """Write the texts of train.csv that are not among the labelled ones, without labels."""
    labelled = {row["text"] for row in read(data / "train_10shot.csv")}
    rows = [row for row in read(data / "train.csv") if row["text"] not in labelled]
    path = out / "unlabelled.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["id", "text"], extrasaction="ignore")
        writer.writeheader()
        # Every so many-th row, because classes may stand together.
        writer.writerows(rows[:: max(1, len(rows) // most)][:most] if most else rows)
    return path


def student_recipe(data: Path, out: Path, seeds: list[int], rows: int, epochs: int) -> Path:
    """Write the recipe of the student, which is the same with and without a teacher but for its training rows."""
    steps = epochs * -(-rows // 32)
    recipe = {
        "data": {
            "dataset_name": "banking77_10shot", "train_csv": str(data / "train_10shot.csv"), "id_column": "id",
            "val_csv": str(data / "validation.csv"), "test_csv": str(data / "test.csv"), "text_fields": ["text"],
            "label_columns": ["category"], "max_length": 128,
        },
        "model": {
            "model_name": str(out / "student"), "problem_type": "single_label_classification", "lora_r": 0,
            "torch_dtype": "float32", "pooling": "mean", "bidirectional": True,
        },
        "train": {
            "batch_size": 32, "gradient_accumulation_steps": 1, "num_train_epochs": steps, "max_steps": steps,
            "eval_steps": max(1, steps // 10), "learning_rate": 2e-3, "metric_for_best_model": "accuracy",
            "report_to": [], "train_metrics_rows": 0, "micro_batch_tokens": 4096,
        },
        "exp": {"output_root": str(out / "outputs"), "seeds": seeds, "baselines": False},
    }  # fmt: skip
    path = out / "student.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


def command(*arguments: str) -> None:
    """Run a command of llmcls in a process of its own, and end if it fails."""
    code = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, check=False).returncode
    if code:
        sys.exit(code)


def measured(run: Path, data: Path, rows: int, base_model: str | None, read_all: bool) -> tuple[float, int, float]:
    """Test texts that a run reads per second of CPU time, the median of three; its parameters; its accuracy, or NaN."""
    from llmcls.model.classifier import count_parameters
    from llmcls.results.finished_runs import open_run
    from llmcls.results.run_folder import RunFolder
    from llmcls.serving.loaded import load_runs

    (loaded,) = load_runs([open_run(RunFolder(run), base_model)])
    texts = [row["text"] for row in read(data / "test.csv")[:rows]]
    seconds = []
    for _ in range(3):
        start = time.process_time()
        loaded.probabilities(loaded.tokens(texts))
        seconds.append(time.process_time() - start)
    accuracy = float("nan")
    if read_all:
        lines = read(data / "test.csv")
        found = loaded.probabilities(loaded.tokens([line["text"] for line in lines])).argmax(axis=1)
        names = loaded.labels.names
        accuracy = statistics.fmean(names[i] == line["category"] for i, line in zip(found, lines, strict=True))
    return rows / statistics.median(seconds), count_parameters(loaded.scorer.model)[1], accuracy


def model_of(run: Path) -> str:
    """The name of the pretrained model of a run."""
    from llmcls.recipe.load import load_recipe
    from llmcls.results.run_folder import RunFolder

    return Path(load_recipe(RunFolder(run).recipe).model.model_name).name


def accuracies(experiment: Path) -> list[float]:
    """Accuracy on test of each seed; of none, if the recipe has no test split."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(experiment.glob("run_*/metrics.json"))]
    return [float(metrics["test"]["accuracy"]) for metrics in found if "test" in metrics]


def draw(points: list[tuple[str, float, float]]) -> None:
    """Draw accuracy over speed, from the name, the texts per second and the accuracy of each model."""
    figure = new_figure((7, 3.2))
    axes = figure.subplots()
    for colour, (name, speed, accuracy) in zip(COLOURS, points, strict=True):
        axes.plot(speed, accuracy, "o", color=colour, markersize=9)
        fast = speed > points[0][1] * 2
        axes.annotate(
            f"{name}: {accuracy:.3f}", (speed, accuracy), (-10 if fast else 10, -3), textcoords="offset points",
            color=INK, ha="right" if fast else "left",
        )  # fmt: skip
    axes.set_xscale("log")
    axes.margins(0.15, 0.25)
    style(axes, "accuracy on test, ten labelled texts a class", "texts per second of CPU time")
    save_pictures(PICTURE, figure)
    PICTURE.with_suffix(".png").unlink()


def main() -> None:
    """Distil, train without a teacher, measure, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", required=True, help="the teacher, trained on train_10shot.csv")
    parser.add_argument("--data", type=Path, required=True, help="the folder of banking77")
    parser.add_argument("--base-model", help="where the pretrained model of the teacher is now, if it moved")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench-distill"))
    parser.add_argument("--texts", type=int, help="so many texts without labels; all if left out")
    parser.add_argument("--seeds", default="1", help="of the student; default: 1")
    parser.add_argument("--epochs", type=int, default=15, help="of the student over all its texts; default: 15")
    parser.add_argument("--timed", type=int, default=256, help="test texts for texts per second; default: 256")
    a = parser.parse_args()
    logging.disable(logging.INFO)
    a.out.mkdir(parents=True, exist_ok=True)
    texts = write_texts(a.data, a.out, a.texts)
    taught = len(read(texts))
    seeds = [int(word) for word in a.seeds.split(",")]
    recipe = student_recipe(a.data, a.out, seeds, taught + len(read(a.data / "train_10shot.csv")), a.epochs)
    if not (a.out / "student").exists():
        size = ["--vocabulary", str(VOCABULARY), "--hidden", str(HIDDEN), "--layers", str(LAYERS)]
        command("llmcls.scratch", str(recipe), f"data.train_csv={texts}", *size)
    moved = ["--base-model", a.base_model] if a.base_model else []
    command("llmcls.distill", "--run", a.run, "--texts", str(texts), *moved, str(recipe))
    command("llmcls.train", str(recipe), "exp.run_name=alone")
    runs = a.out / "outputs" / "student" / "banking77_10shot"
    said = f"student, {taught:,} texts from the teacher"
    rows = [
        (f"teacher: {model_of(Path(a.run))}", Path(a.run), accuracies(Path(a.run).parent)[:1], a.base_model),
        (said, runs / "distilled" / "run_0", accuracies(runs / "distilled"), None),
        ("the same student without a teacher", runs / "alone" / "run_0", accuracies(runs / "alone"), None),
    ]
    lines = [
        f"{machine()}. banking77 with ten labelled texts a class, {taught:,} texts without labels; accuracy on "
        f"{len(read(a.data / 'test.csv')):,} test texts, mean over student seeds {a.seeds}.",
        "",
        "| model | parameters | accuracy | texts per CPU second |",
        "|---|---|---|---|",
    ]
    sizes, points = [], []
    for name, run, found, base in rows:
        # A process has one precision, and a teacher in bfloat16 another one than its student.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as other:
            speed, parameters, accuracy = other.submit(measured, run, a.data, a.timed, base, not found).result()
        mean = statistics.fmean(found or [accuracy])
        sizes.append(parameters)
        points.append((name, speed, mean))
        lines.append(f"| {name} | {parameters / 1e6:.1f} M | {mean:.3f} | {speed:,.0f} |")
    assert sizes[1] <= LARGEST * sizes[0], "the student is too large"
    draw(points)
    write_section("Distillation", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
