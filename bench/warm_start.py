"""A head that starts from a probe against a random one: how soon each reaches what plain fine-tuning reaches.

    python bench/warm_start.py SMOLLM2 --out FOLDER [--only NAME ...] [--tables]

SMOLLM2 is a folder or a name on the hub. Trains `recipes/quickstart.yaml` (400 messages, eight labels) from each start
with three seeds and without early stopping, and evaluates the validation rows five times in an epoch. All are kept in
FOLDER: the same command resumes. --tables trains nothing, and writes bench/results.md from what is finished.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.material import machine, write_section  # noqa: E402
from bench.trainings import Training, add_arguments, run_asked  # noqa: E402
from llmcls.common.user_error import UserError  # noqa: E402
from llmcls.datasets.messages import write_messages  # noqa: E402

METRIC = "average_precision_micro"
STARTS = {"random": "random weights", "label_text": "the words of the labels", "probe": "a linear probe"}
SEEDS = (1, 2, 3)
EVAL_STEPS, EVALUATIONS_PER_EPOCH = 5, 5


def trainings(smollm2: str, data: Path) -> dict[tuple[str, int], Training]:
    """Every start with every seed."""
    overrides = (
        f"model.model_name={smollm2}", f"data.train_csv={data / 'train.csv'}",
        f"data.val_csv={data / 'validation.csv'}", "data.test_csv=null", "train.early_stopping_patience=null",
        f"train.eval_steps={EVAL_STEPS}", f"train.metric_for_best_model={METRIC}",
    )  # fmt: skip
    return {
        (start, seed): Training(f"{start}_{seed}", says, "quickstart", (*overrides, f"model.head_init={start}"), seed)
        for start, says in STARTS.items()
        for seed in SEEDS
    }


def scores(metrics: dict[str, Any]) -> dict[int, float]:
    """The validation score at every evaluated step."""
    return {entry["step"]: entry["validation"][METRIC] for entry in metrics["history"] if "validation" in entry}


def table_rows(found: dict[tuple[str, int], dict[str, Any]]) -> list[str]:
    """A line for each start and seed: scores, and the first epoch with what the random start reaches at its best."""
    rows = []
    for (start, seed), metrics in found.items():
        by_step = scores(metrics)
        steps_per_epoch = metrics["steps"] / metrics["epochs"]
        cells = [f"{by_step[step]:.3f}" for step in sorted(by_step)[EVALUATIONS_PER_EPOCH - 1 :: EVALUATIONS_PER_EPOCH]]
        goal = max(scores(found["random", seed]).values())
        reached = next((step for step in sorted(by_step) if by_step[step] >= goal), None)
        when = "not reached" if reached is None else f"{reached / steps_per_epoch:.1f}"
        rows.append(f"| {STARTS[start]}, seed {seed} | {' | '.join(cells)} | {when} |")
    return rows


def mean_rows(found: dict[tuple[str, int], dict[str, Any]]) -> list[str]:
    """The mean of the seeds for each start."""
    rows = []
    for start, says in STARTS.items():
        runs = [scores(metrics) for (name, _), metrics in found.items() if name == start]
        if len(runs) == len(SEEDS):
            steps = sorted(runs[0])[EVALUATIONS_PER_EPOCH - 1 :: EVALUATIONS_PER_EPOCH]
            cells = [f"{statistics.fmean(run[step] for run in runs):.3f}" for step in steps]
            rows.append(f"| {says}, mean | {' | '.join(cells)} | |")
    return rows


def main() -> None:
    """Train what is not finished, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("smollm2", metavar="SMOLLM2", help="a folder, or a name on the hub")
    add_arguments(parser, list(trainings("", Path()).values()))
    arguments = parser.parse_args()
    data = arguments.out.resolve() / "data"
    write_messages(data, seed=0)
    planned = trainings(arguments.smollm2, data)
    try:
        out = run_asked(list(planned.values()), arguments)
        measured = {key: training.metrics(out) for key, training in planned.items()}
    except UserError as error:
        sys.exit(f"error: {error}")
    found = {key: metrics for key, metrics in measured.items() if metrics and measured["random", key[1]]}
    if not found:
        sys.exit("nothing is finished yet")
    epochs = next(iter(found.values()))["epochs"]
    lines = [
        f"`bench/warm_start.py` on {machine()}. `recipes/quickstart.yaml`: 400 messages, eight labels, SmolLM2-135M "
        "with LoRA. Average precision (micro) on the validation rows after each epoch, and the epoch at which the best "
        "score of the random start with the same seed is reached, which costs a probe one forward pass more.",
        "",
        f"| start of the head | {' | '.join(str(epoch) for epoch in range(1, int(epochs) + 1))} | reached after |",
        "|---|" + "---:|" * (int(epochs) + 1),
        *table_rows(found),
        *mean_rows(found),
    ]
    write_section("Warm start", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
