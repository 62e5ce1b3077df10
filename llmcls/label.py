"""Which texts to label next: ``python -m llmcls.label --run R --pool texts.csv --rows 100 --out to_label.csv``.

Lists the texts that a trained run is unsure of, no two of them alike, with what the run suggests. A person fills in
the label cells, and the rows go to the training file. The pass over the pool resumes if it is interrupted.
"""

from __future__ import annotations

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
from llmcls.prediction.pool import Order, list_texts_to_label
from llmcls.prediction.resumable_predictions import lock_of
from llmcls.results.finished_runs import open_run
from llmcls.results.lock import locked
from llmcls.results.run_folder import RunFolder


def main(argv: list[str] | None = None) -> None:
    """Write the list, and say what to do with it."""
    parser = command_parser("label", "Which texts to label next: those that a run is unsure of, no two alike.")
    parser.add_argument("--run", required=True, help="a run folder, outputs/.../run_0")
    parser.add_argument("--pool", required=True, help="a table with the text columns of the recipe")
    parser.add_argument("--rows", type=int, default=100, help="texts to list; default: 100")
    parser.add_argument("--out", required=True, help="the CSV file to write")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives another list; default: 0")
    parser.add_argument("--base-model", help="where the pretrained model is now, if it moved since training")
    arguments = parser.parse_args(argv)
    watch_signals()
    pool, output = Path(arguments.pool), Path(arguments.out)
    if arguments.rows < 1:
        raise UserError(f"command line: --rows is {arguments.rows}; give a number of texts, such as 100")
    if not 0 <= arguments.seed < 2**32:
        raise UserError(f"command line: --seed is {arguments.seed}; give a number from 0 to {2**32 - 1}")
    if output.suffix.lower() != ".csv":
        raise UserError(f"command line: --out is {output}; the list is a CSV file, give a name such as to_label.csv")
    if output.resolve() == pool.resolve():
        raise UserError("command line: --out is --pool; name another file, the pool is needed for the next list")
    run = open_run(RunFolder(Path(arguments.run)), arguments.base_model)
    accelerator = open_accelerator(run.recipe, training=False, mixed_precision=run.mixed_precision)
    configure_logging(accelerator.is_main_process)
    try:
        with entered_by_main(accelerator, locked(lock_of(output), str(output))):
            count, left_out = list_texts_to_label(
                run, Order(str(pool), output, arguments.rows, arguments.seed), accelerator
            )
            if accelerator.is_main_process:
                columns = ", ".join(run.labels.columns[:3]) + (", ..." if len(run.labels.columns) > 3 else "")
                print(f"left out: {left_out}")
                print(f"{count} texts -> {output}; fill in {columns}, and add the rows to {run.recipe.data.train_csv}")
    finally:
        accelerator.end_training()


if __name__ == "__main__":
    run_command(main)
