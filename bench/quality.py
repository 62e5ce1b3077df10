"""Measure the effect of each change on Reuters, and compare the recipe over its seeds with TF-IDF and a linear model.

    REUTERS_DIR=... [REUTERS_MODEL=...] python bench/quality.py

Each line of the first table adds one change to the line above and trains one seed. The first lines start from
REUTERS_MODEL, any small pretrained decoder; without it, they are left out. Writes bench/results.md.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.material import machine, write_section  # noqa: E402

RECIPE = ROOT / "recipes" / "reuters.yaml"
SHORT = ["train.num_train_epochs=4", "train.weight_decay=0.01"]
PLAIN = ["train.loss=cross_entropy"]
CAUSAL = ["model.bidirectional=false"]
LAST = ["model.pooling=last"]
LORA = ["model.lora_r=8", "model.lora_alpha=32", "model.lora_target_modules=[all-linear]"]
# The change of each line, and the overrides that undo the later changes of the recipe.
PRETRAINED = [
    ("a pretrained decoder, LoRA r 8, last token, causal", [*LORA, *LAST, *CAUSAL, *PLAIN, *SHORT]),
    ("all weights trained", [*LAST, *CAUSAL, *PLAIN, *SHORT, "train.learning_rate=1.0e-3"]),
    ("mean of all tokens", [*CAUSAL, *PLAIN, *SHORT, "train.learning_rate=1.0e-3"]),
    ("every token sees the whole text", [*PLAIN, *SHORT, "train.learning_rate=1.0e-3"]),
]
OWN = [
    ("a tokenizer trained on these texts, random weights", [*PLAIN, *SHORT]),
    ("8 epochs instead of 4, weight decay 0.1 instead of 0.01", PLAIN),
]


def train(model: str, name: str, overrides: list[str], folder: Path) -> Path:
    """Train the recipe in a separate process.

    Parameters
    ----------
    model : str
        Folder or name of the model to start from.
    name : str
        Name of the variant.
    overrides : list of str
    folder : Path
        For the results.

    Returns
    -------
    Path
        The folder of the experiment.
    """
    from llmcls.recipe.load import load_recipe
    from llmcls.results.run_folder import ExperimentFolder

    environment = os.environ | {"REUTERS_MODEL": model}
    overrides = [*overrides, f"exp.output_root={folder / 'outputs'}", f"exp.run_name={name}", "train.report_to=[]"]
    overrides += ["train.train_metrics_rows=0"]
    command = [sys.executable, "-m", "llmcls.train", str(RECIPE), *overrides]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
    os.environ["REUTERS_MODEL"] = model
    return ExperimentFolder.of(load_recipe(RECIPE, overrides)).path


def line(what: str, found: dict) -> str:
    """A row of the first table."""
    test, at_half = found["test"], found["at_half"]["test"]
    return (
        f"| {what} | {at_half['f1_micro']:.4f} | {at_half['f1_macro']:.4f} "
        f"| {test['f1_micro']:.4f} | {test['f1_macro']:.4f} "
        f"| {found['training']['seconds'] / 60:.1f} |"
    )


def interval(found: dict, metric: str) -> str:
    """A metric with its bootstrap interval, as text."""
    low, high = found["intervals"][metric]
    return f"{found[metric]:.4f} ({low:.4f} to {high:.4f})"


def read(run: Path) -> dict:
    """The metrics of a run."""
    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))


def main() -> None:
    """Train, print the tables and write them."""
    if "REUTERS_DIR" not in os.environ:
        sys.exit("error: REUTERS_DIR is not set; set it to the folder of train.csv, validation.csv and test.csv")
    pretrained = os.environ.get("REUTERS_MODEL")
    header = "| change | micro-F1 at 0.5 | macro-F1 at 0.5 | micro-F1, tuned thresholds | macro-F1 | minutes |"
    lines = [header, "|---|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = str(folder / "reuters-llama")
        command = [sys.executable, "-m", "llmcls.scratch", str(RECIPE), f"model.model_name={model}"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        steps = [(pretrained, *step) for step in PRETRAINED] if pretrained else []
        steps += [(model, *step) for step in OWN]
        for i, (start, what, overrides) in enumerate(steps):
            root = train(start, f"step{i}", [*overrides, "exp.seeds=[1]", "exp.baselines=false"], folder)
            lines.append(line(what, read(root / "run_0")))
            print(lines[-1], flush=True)
        root = train(model, "final", ["exp.baselines=true"], folder)
        runs = [read(path) for path in sorted(root.glob("run_*"))]
        lines.append(line("asymmetric loss: the recipe, seed 1", runs[0]))
        print(lines[-1], flush=True)
        members = [str(path) for path in sorted(root.glob("run_*"))]
        output = folder / "ensemble.jsonl"
        command = [sys.executable, "-m", "llmcls.predict", "--run", *members, "--input"]
        command += [str(Path(os.environ["REUTERS_DIR"]) / "test.csv"), "--output", str(output)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        ensemble = json.loads(output.with_name("ensemble.metrics.json").read_text(encoding="utf-8"))
        baselines = json.loads((root / "baselines.json").read_text(encoding="utf-8"))["baselines"]
    lines += ["", "| test | micro-F1 | macro-F1 |", "|---|---|---|"]
    for what, values in (
        ("the recipe, per-class thresholds, mean of seeds", [r["test"] for r in runs]),
        ("the recipe, thresholds of 0.5, mean of seeds", [r["at_half"]["test"] for r in runs]),
    ):
        cells = []
        for metric in ("f1_micro", "f1_macro"):
            each = [v[metric] for v in values]
            cells.append(
                f"{statistics.fmean(each):.4f} +- {statistics.stdev(each):.4f} ({min(each):.4f} to {max(each):.4f})"
            )
        lines.append(f"| {what} | {' | '.join(cells)} |")
    for run in runs:
        lines.append(
            f"| seed {run['seed']} | {interval(run['test'], 'f1_micro')} | {interval(run['test'], 'f1_macro')} |"
        )
    lines.append(
        f"| mean of the {len(runs)} seeds' probabilities | {interval(ensemble, 'f1_micro')} "
        f"| {interval(ensemble, 'f1_macro')} |"
    )
    for name, found in baselines.items():
        test = found["test"]
        lines.append(f"| {name}, per-class thresholds | {interval(test, 'f1_micro')} | {interval(test, 'f1_macro')} |")
    lines.append("")
    lines += [
        "In parentheses: for means, the range over the seeds; otherwise, the 95 % bootstrap interval over test rows.",
        "All seeds start from the same random weights (from `llmcls.scratch`); the head and the order of texts differ.",
    ]
    write_section("Quality", [f"{machine()}. Reuters-21578, ten topics, test split; one change per line.", "", *lines])
    print("\n".join(lines))


if __name__ == "__main__":
    main()
