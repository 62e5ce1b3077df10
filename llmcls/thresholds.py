"""Tune the thresholds of a finished run again: ``python -m llmcls.thresholds --run RUN --metric f1_macro [--apply]``.

What is not given is as in the recipe of the run. The command shows what would change. With ``--apply`` it writes the
new thresholds, decisions and metrics, and renders reports, model card and summary again.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmcls.common.command import command_parser, run_command
from llmcls.common.user_error import UserError
from llmcls.evaluation.thresholds import Thresholds
from llmcls.evaluation.tuning import Tuning
from llmcls.recipe.metric_names import POSITIVE_METRICS, headline, metric_names
from llmcls.recipe.objective import parse_objective
from llmcls.results.finished_runs import FinishedRun, Retuned, apply_retuned, open_run, retune, runs_in
from llmcls.results.model_card import render_model_card
from llmcls.results.report import render_experiment_report, render_report
from llmcls.results.run_folder import RunFolder
from llmcls.results.summary import render_summary


def main(argv: list[str] | None = None) -> None:
    """Tune on the validation predictions of a run, print what changes, and write it if that is wanted."""
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
    parser.add_argument("--apply", action="store_true", help="write what is shown; without it, nothing is written")
    arguments = parser.parse_args(argv)
    if (arguments.shrinkage or 0) < 0 or not 0 < arguments.value < 1:
        raise UserError("--shrinkage must be 0 or more, and --value between 0 and 1")
    _check_metric(arguments.metric)
    run = open_run(RunFolder(Path(arguments.run)))
    retuned = retune(run, _tuning(run, arguments))
    for line in _changes(run, retuned):
        print(line)
    if not arguments.apply:
        print("nothing was written; give --apply to write the new thresholds, decisions, metrics and reports")
        return
    apply_retuned(run, retuned)
    print(f"written: {run.folder.thresholds}")
    for path in _render_again(run.folder):
        print(f"written: {path}")


def _changes(run: FinishedRun, retuned: Retuned) -> list[str]:
    """The thresholds of each label, the rule, and the metrics of each split, before and after."""
    old, new = retuned.before, retuned.after
    # Many labels have one threshold for all.
    named = ["all labels"] if run.labels.many else run.labels.names
    width = max(5, *(len(name) for name in named))
    lines = [f"  {'label':{width}}  before   after"]
    stored = [f"{value:.4f}" for value in old.values] if old else ["-".rjust(6)] * len(new.values)
    for name, before_it, value in zip(named, stored[: len(named)], new.values[: len(named)], strict=True):
        lines.append(f"  {name:{width}}  {before_it}  {value:.4f}")
    lines.append(
        f"rule        {_rule(old) if old else 'unknown'} -> {_rule(new)}{f' ({new.reason})' if new.reason else ''}"
    )
    shown = headline(run.labels.problem_type).items()
    for split, (before, after) in retuned.changes.items():
        numbers = "  ".join(f"{words} {_number(before, m)} -> {_number(after, m)}" for m, words in shown)
        lines.append(f"{split:10}  {numbers}")
    return lines


def _rule(thresholds: Thresholds) -> str:
    """A rule and what it is tuned for."""
    return f"{thresholds.rule} for {thresholds.metric}" if thresholds.metric else thresholds.rule


def _render_again(run: RunFolder) -> list[Path]:
    """Render all that shows the decisions of a run; returns the paths."""
    written = [render_report(run), render_model_card(run)]
    if run.experiment.summary.is_file():
        runs = runs_in(run.experiment.path)
        written += [render_summary(runs), render_experiment_report(runs)]
    return written


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
