"""Start a finished run again, and compare: ``python -m llmcls.reproduce RUN [--check-only]``.

First it says what differs around the run: data, base model, code, libraries, devices. Then it trains the stored recipe
in a new folder beside the run, and compares weights, metrics and predictions. It ends with 0 if all are equal to the
last bit, with 1 if something differs, with 2 if the run cannot be started again. Start it as the run was started, such
as with ``accelerate launch --config_file PROFILE -m llmcls.reproduce RUN``.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from llmcls.common.command import begin_imports, command_parser, run_command

if __name__ == "__main__":
    # The imports below take seconds.
    begin_imports()

from llmcls.common.files import read_json, write_json
from llmcls.common.logs import configure_logging
from llmcls.common.user_error import UserError
from llmcls.engine.accelerator import launched_engine
from llmcls.recipe.load import load_recipe
from llmcls.recipe.schema import Recipe
from llmcls.results.reproduction import Place, changed_surroundings, compare_runs, new_place, outcome_lines
from llmcls.results.run_folder import RunFolder
from llmcls.results.seal import require_intact
from llmcls.training.environment import surroundings

EQUAL, DIFFERENT = 0, 1


def main(argv: list[str] | None = None) -> None:
    """Compare what is around a run, train it again, and compare the results."""
    parser = command_parser("reproduce", "Start a finished run again in a new folder beside it, and compare.")
    parser.add_argument("run", type=Path, help="the folder of a finished run, such as outputs/MODEL/DATA/run_0")
    parser.add_argument("--check-only", action="store_true", help="only compare data, weights, versions and devices")
    arguments = parser.parse_args(argv)
    run = RunFolder(arguments.run)
    if not run.metrics.is_file() or not run.environment.is_file():
        raise UserError(f"{run.path} is not a finished run (no metrics.json or environment.json); train it to its end")
    recipe = load_recipe(run.recipe)
    place = new_place(run, recipe)
    main_process = os.environ.get("RANK", "0") == "0"
    around = _say_what_changed(run, recipe, place) if main_process else []
    if arguments.check_only:
        sys.exit(DIFFERENT if around else EQUAL)
    options = {"exp.output_root": str(place.output_root), "exp.run_name": place.run_name, "exp.overwrite": False}
    overrides = [f"{key}={json.dumps(value)}" for key, value in options.items()]
    # The command itself, in this process: there is one way in which a run comes about.
    importlib.import_module("llmcls.train").main([str(run.recipe), *overrides])
    if main_process:
        sys.exit(_compare(run, place, around))


def _say_what_changed(run: RunFolder, recipe: Recipe, place: Place) -> list[str]:
    """Print and write what differs around a run.

    Raises
    ------
    UserError
        If a file of the data is not there, or the run is damaged.
    """
    configure_logging(main_process=True)
    require_intact(run)
    for key, file in recipe.data.files().items():
        if not os.path.exists(file):
            raise UserError(
                f"{run.recipe}: the {key} file {file} does not exist; start from the folder of the training"
            )
    then = read_json(run.environment)
    if not isinstance(then, dict):
        raise UserError(f"{run.environment} is damaged; restore it")
    around = changed_surroundings(then, surroundings(recipe) | launched_engine())
    print("\n".join(around) if around else "nothing around the run has changed", flush=True)
    write_json(place.report, {"run": str(run.path), "surroundings": around})
    return around


def _compare(run: RunFolder, place: Place, around: list[str]) -> int:
    """Print and write what differs between a run and its repetition; returns the exit code."""
    # What is only known once the engine has started, such as threads and optimizer.
    more = changed_surroundings(read_json(run.environment), read_json(place.run.environment))
    outcome = compare_runs(run, place.run)
    lines = [line for line in more if line not in around] + outcome_lines(outcome)
    equal = not outcome.differences
    print("\n".join([*lines, f"{run.path} and {place.run.path} are {'equal' if equal else 'different'}"]), flush=True)
    values = dataclasses.asdict(outcome) | {"largest": {k: _finite(v) for k, v in outcome.largest.items()}}
    known: dict[str, Any] = {"run": str(run.path), "again": str(place.run.path), "surroundings": [*around, *more]}
    write_json(place.report, known | {"equal": equal} | values)
    return EQUAL if equal else DIFFERENT


def _finite(value: float) -> float | None:
    """A number for JSON; None for what is not there or not a number."""
    return value if abs(value) < float("inf") else None


if __name__ == "__main__":
    run_command(main)
