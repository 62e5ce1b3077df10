"""What each change brings on banking77 with few labels, and what the recipes reach on its test split.

    BANKING77_DIR=... python bench/banking77.py SMOLLM2 GEMMA3 --out FOLDER [--only NAME ...] [--tables]

SMOLLM2 and GEMMA3 are folders or names on the hub. Each line of the first table adds one change to the line above, and
trains one seed on ten texts of each class; its figures are on the validation rows. The second table has the committed
recipes with their seeds, on the test rows. A training of 770 texts takes half an hour on one core, one of 9,000 texts
more than an hour. All are kept in FOLDER: the same command resumes, and several may run side by side with --only.
--tables trains nothing, and writes bench/results.md from what is finished.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.material import machine, write_section  # noqa: E402
from llmcls.common.user_error import UserError  # noqa: E402
from llmcls.recipe.load import load_recipe  # noqa: E402
from llmcls.results.run_folder import ExperimentFolder  # noqa: E402

FEW, ALL = ROOT / "recipes" / "banking77_10shot.yaml", ROOT / "recipes" / "banking77.yaml"
TITLE = "banking77"
PLAIN = ["data.prompt=null", "train.label_smoothing=0", "model.lora_dropout=0.05", "train.learning_rate=1.0e-3"]
ASKED = """data.prompt='"{text}" The bank customer asks about the "'"""
REGULAR = ["train.label_smoothing=0.1", "model.lora_dropout=0.1"]


@dataclass(frozen=True)
class Training:
    """One training.

    Attributes
    ----------
    name : str
        Also the name of its folder.
    says : str
        What the table calls it.
    large : bool
        Whether it trains Gemma 3 270M, not SmolLM2-135M.
    overrides : list of str
    recipe : Path
    seed : int
    """

    name: str
    says: str
    large: bool
    overrides: list[str] = field(default_factory=list)
    recipe: Path = FEW
    seed: int = 1


CHANGES = [
    Training("last", "SmolLM2-135M, LoRA r 16, last token, rate 1e-3, 9 epochs", False, PLAIN),
    Training("mean", "mean of all tokens", False, [*PLAIN, "model.pooling=mean"]),
    Training(
        "both_ways", "every token sees the whole text", False,
        [*PLAIN, "model.pooling=mean", "model.bidirectional=true"],
    ),
    Training(
        "warm", "the head starts from a probe", False,
        [*PLAIN, "model.pooling=mean", "model.bidirectional=true", "model.head_init=probe"],
    ),
    Training("asked", "instead of the last three: the last token of a prompt", False, [*PLAIN, ASKED]),
    Training("smooth", "label smoothing 0.1, dropout 0.1 instead of 0.05", False, [*PLAIN, ASKED, *REGULAR]),
    Training("gemma", "Gemma 3 270M", True, [*PLAIN, ASKED, *REGULAR]),
    Training("slower", "rate 5e-4", True, [ASKED]),
]  # fmt: skip
RECIPES = [
    *(Training(f"seed{s}", "ten texts of each class", True, recipe=FEW, seed=s) for s in (1, 2, 3)),
    Training("full1", "9,000 texts", True, recipe=ALL),
]
LAST_CHANGE = "the text twice in the prompt: the recipe"


def experiment(training: Training, out: Path, models: list[str]) -> tuple[list[str], ExperimentFolder]:
    """The overrides of a training, and its folder."""
    os.environ["BANKING77_MODEL"] = models[training.large]
    overrides = [*training.overrides, f"exp.output_root={out}", f"exp.run_name={training.name}"]
    overrides += [f"exp.seeds=[{training.seed}]", "exp.baselines=false"]
    if training.recipe == FEW and not training.name.startswith("seed"):
        # Only validation rows decide.
        overrides.append("data.test_csv=null")
    return overrides, ExperimentFolder.of(load_recipe(training.recipe, overrides))


def train(training: Training, out: Path, models: list[str]) -> None:
    """Train in a process of its own, or resume; nothing happens to a finished run."""
    overrides, _ = experiment(training, out, models)
    profile = str(ROOT / "accel_configs" / "cpu.yaml")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", profile, "-m", "llmcls.train"]
    done = subprocess.run([*command, str(training.recipe), *overrides], cwd=ROOT)
    if done.returncode:
        sys.exit(f"{training.name} ended with exit code {done.returncode}")


def finished(training: Training, out: Path, models: list[str]) -> dict | None:
    """The metrics of a training, or None before its end."""
    path = experiment(training, out, models)[1].run(0).metrics
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def change_rows(out: Path, models: list[str]) -> list[str]:
    """The rows of the first table."""
    rows = []
    for training in [*CHANGES, RECIPES[0]]:
        found = finished(training, out, models)
        says = LAST_CHANGE if training is RECIPES[0] else training.says
        if found:
            by_step = [x["validation"]["accuracy"] for x in found["history"] if "validation" in x]
            minutes = found["training"]["seconds"] / 60
            cells = " | ".join(f"{value:.4f}" for value in by_step)
            rows.append(f"| {says} | {cells} | {found['validation']['accuracy']:.4f} | {minutes:.0f} |")
        else:
            rows.append(f"| {says} |{' |' * 5}")
    return rows


def recipe_rows(out: Path, models: list[str]) -> list[str]:
    """The rows of the second table."""
    rows, few = [], []
    for training in RECIPES:
        found = finished(training, out, models)
        if not found:
            continue
        low, high = found["test"]["intervals"]["accuracy"]
        if training.recipe == FEW:
            few.append(found["test"]["accuracy"])
        rows.append(
            f"| {training.says}, seed {training.seed} | {found['validation']['accuracy']:.4f} "
            f"| {found['test']['accuracy']:.4f} ({low:.4f} to {high:.4f}) | {found['training']['seconds'] / 60:.0f} |"
        )
    if len(few) > 1:
        rows.append(f"| ten texts of each class, mean of {len(few)} seeds | | {statistics.fmean(few):.4f} | |")
    return rows


def write_tables(out: Path, models: list[str]) -> None:
    """Write and print both tables."""
    lines = [
        f"{machine()}, one thread a training. Ten texts of each of 77 classes (770), accuracy on the validation rows "
        "after three, six and nine epochs, and of the best checkpoint. One change per line; an empty line was not "
        "measured.", "",
        "| change | 3 epochs | 6 epochs | 9 epochs | best | minutes |", "|---|---|---|---|---|---|",
        *change_rows(out, models), "",
        "The recipes, chosen on validation; the test rows are read once for each line. In parentheses: the 95 % "
        "bootstrap interval over the rows.", "",
        "| labelled texts | validation | test | minutes |", "|---|---|---|---|", *recipe_rows(out, models),
    ]  # fmt: skip
    write_section(TITLE, lines)
    print("\n".join(lines))


def main() -> None:
    """Train what is not finished, and write the tables."""
    parser = argparse.ArgumentParser(description="Measure each change on banking77, and the recipes on its test split.")
    parser.add_argument("smollm2", metavar="SMOLLM2", help="a folder, or a name on the hub")
    parser.add_argument("gemma3", metavar="GEMMA3", help="a folder, or a name on the hub")
    parser.add_argument("--out", type=Path, required=True, help="where the runs are kept")
    parser.add_argument(
        "--only", nargs="+", choices=[t.name for t in [*CHANGES, *RECIPES]], help="only these trainings"
    )
    parser.add_argument("--tables", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    models = [arguments.smollm2, arguments.gemma3]
    try:
        for training in [*CHANGES, *RECIPES] if not arguments.tables else []:
            if arguments.only is None or training.name in arguments.only:
                train(training, arguments.out.resolve(), models)
        write_tables(arguments.out.resolve(), models)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
