"""List and rank runs: ``python -m llmcls.runs [ROOT]`` prints every experiment below a folder, the best one first."""

from __future__ import annotations

from pathlib import Path

from llmcls.common.command import command_parser, run_command
from llmcls.common.nearest import nearest
from llmcls.common.user_error import UserError
from llmcls.recipe.metric_names import metric_names
from llmcls.results.run_list import list_lines, list_runs


def main(argv: list[str] | None = None) -> None:
    """Print a table for each data set and metric."""
    parser = command_parser("runs", "List and rank the runs of a folder: metric, interval, seeds, state, time.")
    parser.add_argument("root", nargs="?", default="outputs", help="a folder of results; default: outputs")
    parser.add_argument("--metric", help="the metric that ranks; default: that of each recipe")
    arguments = parser.parse_args(argv)
    known = sorted(metric_names("binary_classification"))
    if arguments.metric is not None and arguments.metric not in known:
        near = nearest(arguments.metric, known)
        hint = f"; did you mean {near}?" if near else "; a metric is called as in metrics.json, such as f1_macro"
        raise UserError(f"--metric is {arguments.metric!r}, which is no metric{hint}")
    root = Path(arguments.root)
    for line in list_lines(list_runs(root, arguments.metric), root):
        print(line)


if __name__ == "__main__":
    run_command(main)
