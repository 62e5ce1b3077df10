"""What each change brings with a pretrained decoder on three sets, and what the recipes reach on their test splits.

    BANKING77_DIR=... REUTERS_DIR=... python bench/changes.py SMOLLM2 GEMMA3 --out FOLDER [--only NAME ...] [--tables]

SMOLLM2 and GEMMA3 are folders or names on the hub. In each table of changes, a line adds one change to the line above,
trains one seed, and has figures on the validation rows alone. The last table has the committed recipes on the test
rows. A training takes from a quarter of an hour to two hours on one core. All are kept in FOLDER: the same command
resumes, and several may run side by side with --only. --tables trains nothing, and writes bench/results.md from what is
finished.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.material import machine, write_section  # noqa: E402
from bench.trainings import Training, add_arguments, run_asked  # noqa: E402
from llmcls.common.user_error import UserError  # noqa: E402


@dataclass(frozen=True)
class Changes:
    """A table of changes.

    Attributes
    ----------
    recipe : str
        Which all lines start from.
    about : str
        What is trained on what.
    figures : dict of str to str
        Columns, and the metrics of validation in them.
    trainings : list of Training
        Without a test split.
    final : Training
        The recipe.
    last : str
        What the recipe changes on the last line.
    """

    recipe: str
    about: str
    figures: dict[str, str]
    trainings: list[Training]
    final: Training
    last: str


ASKED = {
    "banking77": """data.prompt='"{text}" The bank customer asks about the "'""",
    "reuters": r'data.prompt="{text}\nThis news is about"',
}
MEAN, BOTH_WAYS, PROBE = "model.pooling=mean", "model.bidirectional=true", "model.head_init=probe"
FEW, ALL, NEWS = "banking77_10shot", "banking77", "reuters_prompt"


def trainings(smollm2: str, gemma3: str) -> tuple[list[Changes], list[Training]]:
    """The tables of changes, and the recipes with their seeds."""
    small, large = f"model.model_name={smollm2}", f"model.model_name={gemma3}"
    bare = ("data.prompt=null", "train.learning_rate=1.0e-3", "data.test_csv=null")
    rough = ("train.label_smoothing=0", "model.lora_dropout=0.05")
    asked = (ASKED["banking77"], "data.test_csv=null")

    seeds = [Training(f"seed{s}", "banking77, ten texts of each class", FEW, (large,), s) for s in (1, 2, 3)]
    few = [
        Training("last", "SmolLM2-135M, LoRA r 16, last token, rate 1e-3, 9 epochs", FEW, (small, *bare, *rough)),
        Training("mean", "mean of all tokens", FEW, (small, *bare, *rough, MEAN)),
        Training("both_ways", "every token sees the whole text", FEW, (small, *bare, *rough, MEAN, BOTH_WAYS)),
        Training("warm", "the head starts from a probe", FEW, (small, *bare, *rough, MEAN, BOTH_WAYS, PROBE)),
        Training("words", "from the words of the labels instead", FEW,
                 (small, *bare, *rough, MEAN, BOTH_WAYS, "model.head_init=label_text")),
        Training("asked", "instead of these three: the last token of a prompt", FEW,
                 (small, *bare, *rough, asked[0])),
        Training("smooth", "label smoothing 0.1, dropout 0.1 instead of 0.05", FEW, (small, *bare, asked[0])),
        Training("gemma", "Gemma 3 270M", FEW, (large, *bare, asked[0])),
        Training("slower", "rate 5e-4", FEW, (large, *asked)),
    ]  # fmt: skip

    full = Training("full1", "banking77, 9,000 texts", ALL, (large,))
    once = "num_train_epochs=1"
    every = [
        Training("f_last", "SmolLM2-135M, LoRA r 16, last token, rate 1e-3, 1 epoch", ALL, (small, *bare, once)),
        Training("f_both_ways", "mean of all tokens, which see the whole text", ALL,
                 (small, *bare, MEAN, BOTH_WAYS, once)),
        Training("f_warm", "the head starts from a probe", ALL, (small, *bare, MEAN, BOTH_WAYS, PROBE, once)),
        Training("f_asked", "instead of the last two: the last token of a prompt", ALL,
                 (small, *bare, asked[0], once)),
        Training("f_rank", "LoRA r 64", ALL, (small, *bare, asked[0], "model.lora_r=64", once)),
        Training("f_gemma", "Gemma 3 270M, r 16 again", ALL, (large, *bare, asked[0], once)),
        Training("f_slower", "rate 5e-4", ALL, (large, *asked, once)),
    ]  # fmt: skip

    news = Training("news1", "Reuters, 5,809 texts", NEWS, (large,))
    short = ("data.train_rows=2000", once)
    question = ASKED["reuters"]
    some = [
        Training("n_last", "SmolLM2-135M, LoRA r 16, last token, rate 1e-3, 1 epoch", NEWS, (small, *bare, *short)),
        Training("n_both_ways", "mean of all tokens, which see the whole text", NEWS,
                 (small, *bare, MEAN, BOTH_WAYS, *short)),
        Training("n_warm", "the head starts from a probe", NEWS, (small, *bare, MEAN, BOTH_WAYS, PROBE, *short)),
        Training("n_asked", "instead of the last two: the last token of a prompt", NEWS,
                 (small, *bare, question, *short)),
        Training("n_gemma", "Gemma 3 270M", NEWS, (large, *bare, question, *short)),
        Training("n_slower", "rate 5e-4", NEWS, (large, "data.test_csv=null", *short)),
        Training("n_asymmetric", "asymmetric loss instead of cross-entropy", NEWS,
                 (large, "data.test_csv=null", "train.loss=asymmetric", *short)),
    ]  # fmt: skip

    accuracy = {"accuracy": "accuracy", "macro-F1": "f1_macro"}
    tables = [
        Changes(FEW, "ten texts of each of 77 classes (770)", accuracy, few, seeds[0],
                "the prompt has the text twice"),
        Changes(ALL, "all 9,000 texts, one epoch", accuracy, every, full, "five epochs"),
        Changes(NEWS, "2,000 of the texts, one epoch; thresholds tuned on the same rows",
                {"micro-F1": "f1_micro", "macro-F1": "f1_macro", "average precision": "average_precision_micro"},
                some, news, "all 5,809 texts, two epochs, cross-entropy again"),
    ]  # fmt: skip
    return tables, [*seeds, full, news]


def figures_text(metrics: dict[str, Any] | None, figures: dict[str, str]) -> str:
    """The cells of a line."""
    if metrics is None:
        return " | ".join("" for _ in [*figures, "minutes"])
    found = metrics["validation"]
    return " | ".join(
        [*(f"{found[key]:.4f}" for key in figures.values()), f"{metrics['training']['seconds'] / 60:.0f}"]
    )


def table_lines(changes: Changes, out: Path) -> list[str]:
    """A table of changes, or nothing where no line was measured."""
    rows = [(t.says, t.metrics(out)) for t in changes.trainings] + [
        (f"{changes.last}: the recipe", changes.final.metrics(out))
    ]
    if not any(metrics for _, metrics in rows[:-1]):
        return []
    return [
        f"`recipes/{changes.recipe}.yaml`: {changes.about}; validation rows.",
        "",
        f"| change | {' | '.join(changes.figures)} | minutes |",
        "|---|" + "---|" * (len(changes.figures) + 1),
        *(f"| {says} | {figures_text(metrics, changes.figures)} |" for says, metrics in rows),
        "",
    ]


def recipe_lines(recipes: list[Training], out: Path) -> list[str]:
    """The committed recipes on the test rows."""
    rows, few = [], []
    for training in recipes:
        found = training.metrics(out)
        if not found:
            continue
        first = "f1_micro" if training.recipe == NEWS else "accuracy"
        cells = []
        for key in (first, "f1_macro"):
            low, high = found["test"]["intervals"][key]
            cells.append(f"{found['validation'][key]:.4f} | {found['test'][key]:.4f} ({low:.4f} to {high:.4f})")
        minutes = found["training"]["seconds"] / 60
        rows.append(f"| {training.says}, seed {training.seed} | {' | '.join(cells)} | {minutes:.0f} |")
        if training.recipe == FEW:
            few.append((found["test"]["accuracy"], found["test"]["f1_macro"]))
            if len(few) == sum(t.recipe == FEW for t in recipes):
                accuracy, macro = (statistics.fmean(values) for values in zip(*few, strict=True))
                rows.append(f"| {training.says}, mean of {len(few)} seeds | | {accuracy:.4f} | | {macro:.4f} | |")
    return rows


def main() -> None:
    """Train what is not finished, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("smollm2", metavar="SMOLLM2", help="a folder, or a name on the hub")
    parser.add_argument("gemma3", metavar="GEMMA3", help="a folder, or a name on the hub")
    names = trainings("", "")
    add_arguments(parser, [*(t for table in names[0] for t in table.trainings), *names[1]])
    arguments = parser.parse_args()
    tables, recipes = trainings(arguments.smollm2, arguments.gemma3)
    try:
        out = run_asked([*(t for table in tables for t in table.trainings), *recipes], arguments)
        lines = [
            f"`bench/changes.py` on {machine()}, one thread a training, several side by side. One change per "
            "line, each with one seed.",
            "",
            *(line for table in tables for line in table_lines(table, out)),
            "The recipes, chosen on validation; the test rows are read once for each line. For single-label sets the "
            "first figure is accuracy, for multi-label sets micro-F1. In parentheses: the 95 % bootstrap interval.",
            "",
            "| recipe | validation | test | macro-F1, validation | macro-F1, test | minutes |",
            "|---|---|---|---|---|---|",
            *recipe_lines(recipes, out),
        ]
    except UserError as error:
        sys.exit(f"error: {error}")
    write_section("Changes", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
