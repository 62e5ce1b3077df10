"""Show mistakes: ``python -m llmcls.errors --run RUN``.

Prints where the model is confident and wrong, which labels in the data are probably wrong, and which texts of the split
are near-duplicates of training texts.
"""

from __future__ import annotations

from pathlib import Path

from llmcls.common.command import command_parser, run_command
from llmcls.common.files import write_json
from llmcls.common.user_error import UserError
from llmcls.results.error_analysis import error_lines, find_errors
from llmcls.results.finished_runs import open_run
from llmcls.results.run_folder import RunFolder


def main(argv: list[str] | None = None) -> None:
    """Print the most important findings, and write all of them to errors_<split>.json in the run folder."""
    parser = command_parser("errors", "Show mistakes of a run and probable errors in the data.")
    parser.add_argument("--run", required=True, help="a run folder, outputs/.../run_0")
    parser.add_argument("--split", choices=["validation", "test"], help="default: test if the run predicted it")
    parser.add_argument("--top", type=int, default=10, help="how many of each kind to print")
    parser.add_argument("--similar", type=float, default=0.9, help="minimum cosine similarity of near-duplicates")
    arguments = parser.parse_args(argv)
    run = open_run(RunFolder(Path(arguments.run)))
    splits = run.folder.predicted_splits()
    split = arguments.split or (splits[-1] if splits else None)
    if split not in splits:
        raise UserError(
            f"{run.folder.path} has no predictions of {split or 'validation or test'}, because its recipe has no such "
            "file; choose another --split, or train with data.val_csv or data.test_csv"
        )
    if not 0 < arguments.similar <= 1 or arguments.top < 1:
        raise UserError("--similar must be above 0 and at most 1, and --top at least 1")
    found = find_errors(run, split, arguments.similar)
    write_json(run.folder.errors(split), found)
    for line in error_lines(found, arguments.top):
        print(line)
    print(f"all findings: {run.folder.errors(split)}")


if __name__ == "__main__":
    run_command(main)
