"""Tune the thresholds of a finished run again: ``python -m llmcls.thresholds --run RUN --metric f1``."""

from __future__ import annotations

from pathlib import Path

from llmcls.common.command import command_parser, run_command
from llmcls.common.user_error import UserError
from llmcls.evaluation.thresholds import Tuning
from llmcls.recipe.objective import parse_objective
from llmcls.results.finished_runs import open_run, retune
from llmcls.results.model_card import render_model_card
from llmcls.results.report import render_report
from llmcls.results.run_folder import RunFolder


def main(argv: list[str] | None = None) -> None:
    """Tune on the validation predictions of a run, apply the new thresholds, and print what changed."""
    parser = command_parser("thresholds", "Tune the thresholds of a finished run again, without training.")
    parser.add_argument("--run", required=True, help="a run folder, outputs/.../run_0")
    parser.add_argument("--metric", default="f1", help="f1, f0.5, f2, ... or recall@precision=0.9")
    parser.add_argument(
        "--rule", choices=["per_class", "global", "fixed"], default="per_class", help="kind of threshold"
    )
    parser.add_argument(
        "--shrinkage", type=float, default=20.0, help="positives that count as much as the global threshold"
    )
    parser.add_argument("--value", type=float, default=0.5, help="the threshold for --rule fixed")
    parser.add_argument("--at-least-one", action="store_true", help="every text gets at least one label")
    arguments = parser.parse_args(argv)
    try:
        parse_objective(arguments.metric)
    except ValueError as error:
        raise UserError(f"--metric is {arguments.metric!r}; {error}") from None
    if arguments.shrinkage < 0 or not 0 < arguments.value < 1:
        raise UserError("--shrinkage must be 0 or more, and --value between 0 and 1")
    run = open_run(RunFolder(Path(arguments.run)))
    tuning = Tuning(arguments.rule, arguments.metric, arguments.shrinkage, arguments.at_least_one, arguments.value)
    thresholds, changes = retune(run, tuning)
    render_report(run.folder)
    render_model_card(run.folder)
    for name, value in zip(run.labels.names, thresholds.values, strict=True):
        print(f"  {name:30} {value:.4f}")
    for split, (old, new) in changes.items():
        print(f"{split:10}  micro-F1 {old['f1_micro']:.4f} -> {new['f1_micro']:.4f}  ", end="")
        print(f"macro-F1 {old['f1_macro']:.4f} -> {new['f1_macro']:.4f}")


if __name__ == "__main__":
    run_command(main)
