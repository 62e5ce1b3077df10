"""Compare two runs: ``python -m llmcls.compare A B`` prints whether B is better, worse, or the difference is noise."""

from __future__ import annotations

from pathlib import Path

from llmcls.common.command import command_parser, run_command
from llmcls.common.user_error import UserError
from llmcls.results.comparison import comparison_lines


def main(argv: list[str] | None = None) -> None:
    """Compare two sides and print the result of each metric."""
    parser = command_parser("compare", "Is run B better than run A, or is the difference noise?")
    parser.add_argument("first", metavar="A", help="a run folder, or a folder of runs, whose seeds all count")
    parser.add_argument("second", metavar="B", help="the same, for the other side")
    parser.add_argument("--split", choices=["validation", "test"], help="default: test if all runs predicted it")
    parser.add_argument("--resamples", type=int, default=2000, help="bootstrap resamples")
    arguments = parser.parse_args(argv)
    if arguments.resamples < 100:
        raise UserError("--resamples must be at least 100")
    for line in comparison_lines(Path(arguments.first), Path(arguments.second), arguments.split, arguments.resamples):
        print(line)


if __name__ == "__main__":
    run_command(main)
