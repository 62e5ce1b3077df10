"""Predict a table with a trained run: one JSON line per row (or a row of CSV or Parquet), in the order of the input.

``python -m llmcls.predict --run outputs/.../run_0 --input texts.csv --output predictions.jsonl`` needs the run folder
and the pretrained model. ``--recipe R.yaml`` instead of ``--run`` uses the best run of the recipe. Finished rows are
appended to ``<output>.partial``, so an interrupted prediction resumes where it stopped. One text (``--text``), or the
lines of standard input (``--input -``), are predicted too; their lines are printed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from llmcls.common.command import begin_imports, command_parser, run_command

if __name__ == "__main__":
    # The imports below take seconds.
    begin_imports()

from llmcls.common.logs import configure_logging
from llmcls.common.signals import watch_signals
from llmcls.common.user_error import UserError
from llmcls.engine.accelerator import open_accelerator
from llmcls.engine.agreement import entered_by_main
from llmcls.prediction.ensemble import predict_ensemble
from llmcls.prediction.predict_table import predict_table
from llmcls.prediction.resumable_predictions import lock_of
from llmcls.recipe.load import load_recipe
from llmcls.results.finished_runs import FinishedRun, best_run, finished_runs, open_run
from llmcls.results.lock import locked
from llmcls.results.prediction_formats import FORMATS, format_of, write_lines
from llmcls.results.run_folder import RunFolder
from llmcls.serving.stream import CHUNK, Row, classify_stream, json_rows, text_rows


def main(argv: list[str] | None = None) -> None:
    """Predict a table with a trained run, or with the mean of several runs."""
    parser = command_parser("predict", "Classify texts with a trained run.")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", nargs="+", help="a run folder, outputs/.../run_0; with several, predict their mean")
    which.add_argument("--recipe", help="the trained recipe; uses its best run on validation")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--input",
        help="a table with the text columns of the recipe; - reads one text per line of standard input",
    )
    what.add_argument("--text", help="one text")
    parser.add_argument("--output", help="the file to write; --text and --input - are printed without it")
    parser.add_argument("--format", choices=FORMATS, help="of the output; that of its extension if left out")
    parser.add_argument("--jsonl", action="store_true", help="with --input -: each line is an object with the columns")
    parser.add_argument("--ensemble", action="store_true", help="with --recipe: predict the mean of all finished seeds")
    parser.add_argument("--base-model", help="where the pretrained model is now, if it moved since training")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help="with --recipe, as in training"
    )
    arguments = parser.parse_intermixed_args(argv)
    watch_signals()
    if arguments.run and arguments.overrides:
        raise UserError("command line: overrides need --recipe; with --run, leave them out (a run has its own recipe)")
    if arguments.run and arguments.ensemble:
        raise UserError("command line: --ensemble needs --recipe; with --run, name all run folders instead")
    streamed = arguments.text is not None or arguments.input == "-"
    if not streamed and not arguments.output:
        raise UserError("command line: --input FILE needs --output FILE; only --text and --input - are printed")
    if arguments.format and not arguments.output:
        raise UserError("command line: --format needs --output; what is printed is JSON lines")
    if arguments.jsonl and arguments.input != "-":
        raise UserError("command line: --jsonl is for --input -; the extension of a file says what is in it")
    if arguments.run:
        folders = [RunFolder(Path(folder)) for folder in arguments.run]
    else:
        recipe = load_recipe(arguments.recipe, arguments.overrides)
        folders = finished_runs(recipe) if arguments.ensemble else [best_run(recipe)]
    runs = [open_run(folder, arguments.base_model) for folder in folders]
    if streamed:
        predict_stream(runs, arguments)
        return
    accelerator = open_accelerator(runs[0].recipe, training=False, mixed_precision=runs[0].mixed_precision)
    configure_logging(accelerator.is_main_process)
    output, kind = Path(arguments.output), format_of(arguments.output, arguments.format)
    try:
        with entered_by_main(accelerator, locked(lock_of(output), str(output))):
            if len(runs) == 1:
                predict_table(runs[0], arguments.input, output, accelerator, kind)
            else:
                predict_ensemble(runs, arguments.input, output, accelerator, kind)
    finally:
        accelerator.end_training()


def predict_stream(runs: list[FinishedRun], arguments: argparse.Namespace) -> None:
    """Predict one text, or the lines of standard input, and print or write the lines.

    Raises
    ------
    UserError
        If several processes were started, of which only one has the input, or a line cannot be read.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("--text and --input - need one process; start `python -m llmcls.predict` without a launcher")
    configure_logging(main_process=True)
    source = sys.stdin.buffer
    if arguments.text is not None:
        rows: Iterable[Row] = [("0", arguments.text)]
    elif arguments.jsonl:
        rows = json_rows(source, runs[0].recipe)
    else:
        rows = text_rows(source)
    lines = classify_stream(runs, rows, 1 if source.isatty() else CHUNK)
    if arguments.output:
        kind = format_of(arguments.output, arguments.format)
        write_lines(lines, Path(arguments.output), runs[0].labels, kind)
        return
    try:
        for line in lines:
            sys.stdout.buffer.write(line.encode())
            sys.stdout.buffer.flush()
    except BrokenPipeError:
        # The reader has seen enough, as `head` does. Python would complain when it closes the stream at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    run_command(main)
