"""Compare two runs: ``python -m llmcls.compare A B`` prints whether B is better, worse, or the difference is noise.

With ``--report FILE.html``, the comparison is also written as a page.
"""

from __future__ import annotations

from pathlib import Path

from llmcls.common.command import command_parser, run_command
from llmcls.common.user_error import UserError
from llmcls.results.comparison import compare_folders, comparison_lines
from llmcls.results.comparison_report import write_comparison_report


def main(argv: list[str] | None = None) -> None:
    """Compare two sides and print the result of each metric."""
    parser = command_parser("compare", "Is run B better than run A, or is the difference noise?")
    parser.add_argument("first", metavar="A", help="a run folder, or a folder of runs, whose seeds all count")
    parser.add_argument("second", metavar="B", help="the same, for the other side")
    parser.add_argument("--split", choices=["validation", "test"], help="default: test if all runs predicted it")
    parser.add_argument("--resamples", type=int, default=2000, help="bootstrap resamples")
    parser.add_argument("--report", metavar="FILE.html", help="also write the comparison as a page")
    arguments = parser.parse_args(argv)
    if arguments.resamples < 100:
        raise UserError("--resamples must be at least 100")
    folders = Path(arguments.first), Path(arguments.second)
    found = compare_folders(*folders, arguments.split, arguments.resamples)
    for line in comparison_lines(*folders, found):
        print(line)
    if arguments.report:
        write_comparison_report(Path(arguments.report), *folders, found)
        print(f"report: {arguments.report}")


if __name__ == "__main__":
    run_command(main)
