"""Tune the thresholds of a finished run again: ``python -m llmcls.thresholds --run RUN --metric f1_macro``.

What is not given is as in the recipe of the run.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmcls.common.command import command_parser, run_command
from llmcls.common.user_error import UserError
from llmcls.evaluation.tuning import Tuning
from llmcls.recipe.metric_names import POSITIVE_METRICS, headline, metric_names
from llmcls.recipe.objective import parse_objective
from llmcls.results.finished_runs import FinishedRun, open_run, retune
from llmcls.results.model_card import render_model_card
from llmcls.results.report import render_report
from llmcls.results.run_folder import RunFolder


def main(argv: list[str] | None = None) -> None:
    """Tune on the validation predictions of a run, apply the new thresholds, and print what changed."""
    parser = command_parser("thresholds", "Tune the thresholds of a finished run again, without training.")
    parser.add_argument("--run", required=True, help="a run folder, outputs/.../run_0")
    parser.add_argument(
        "--metric", help="f1_micro, f1_macro, f1_samples, accuracy, ...; f0.5, f2; recall@precision=0.9"
    )
    parser.add_argument("--rule", choices=["auto", "per_class", "global", "joint", "fixed"], help="kind of threshold")
    parser.add_argument("--shrinkage", type=float, help="positives that count as much as the shared threshold")
    parser.add_argument("--value", type=float, default=0.5, help="the threshold for --rule fixed")
    parser.add_argument(
        "--at-least-one", action=argparse.BooleanOptionalAction, help="whether every text gets at least one label"
    )
    arguments = parser.parse_args(argv)
    if (arguments.shrinkage or 0) < 0 or not 0 < arguments.value < 1:
        raise UserError("--shrinkage must be 0 or more, and --value between 0 and 1")
    _check_metric(arguments.metric)
    run = open_run(RunFolder(Path(arguments.run)))
    thresholds, changes = retune(run, _tuning(run, arguments))
    render_report(run.folder)
    render_model_card(run.folder)
    for name, value in zip(run.labels.names, thresholds.values, strict=True):
        print(f"  {name:30} {value:.4f}")
    reason = f" ({thresholds.reason})" if thresholds.reason else ""
    print(f"rule {thresholds.rule}{reason}")
    for split, (old, new) in changes.items():
        shown = headline(run.labels.problem_type).items()
        print(f"{split:10}  " + "  ".join(f"{words} {_number(old, m)} -> {_number(new, m)}" for m, words in shown))


def _check_metric(metric: str | None) -> None:
    """Refuse what is neither a metric nor a way to weight precision and recall."""
    if metric is not None and metric not in metric_names("binary_classification"):
        try:
            parse_objective(metric)
        except ValueError as error:
            raise UserError(f"--metric is {metric!r}; {error}, or a metric such as f1_micro") from None


def _tuning(run: FinishedRun, arguments: argparse.Namespace) -> Tuning:
    """The settings of the run's recipe, with those of the command line instead where they are given."""
    tuning, metric = Tuning.of(run.recipe.train), arguments.metric
    if metric in POSITIVE_METRICS and not run.labels.binary:
        raise UserError(
            f"--metric is {metric}, which is for binary tasks; {run.folder.path} is {run.labels.problem_type}"
        )
    if metric in metric_names(run.labels.problem_type):
        tuning = replace(tuning, serves=metric)
    elif metric is not None:
        tuning = replace(tuning, metric=metric)
    given = {"rule": arguments.rule, "shrinkage": arguments.shrinkage, "at_least_one": arguments.at_least_one}
    return replace(tuning, fixed=arguments.value, **{k: v for k, v in given.items() if v is not None})


def _number(metrics: dict[str, Any], name: str) -> str:
    value = metrics.get(name)
    return "undefined" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    run_command(main)
