"""Render the reports of finished runs again: ``python -m llmcls.report RUN`` or ``python -m llmcls.report EXPERIMENT``.

For a run folder, writes its report.html and its model card. For a folder of runs, writes those of every finished run,
the report of all seeds, and the summary over seeds. For the grid file of a sweep, writes the page of the sweep.
"""

from __future__ import annotations

from pathlib import Path

from llmcls.common.command import command_parser, run_command
from llmcls.recipe.grid import load_grid
from llmcls.results.finished_runs import runs_in
from llmcls.results.model_card import render_model_card
from llmcls.results.report import render_experiment_report, render_report
from llmcls.results.summary import render_summary
from llmcls.results.sweep_report import write_sweep_report


def main(argv: list[str] | None = None) -> None:
    """Render reports and model cards, and print their paths."""
    parser = command_parser("report", "Render report.html, the model card and the summary of finished runs again.")
    parser.add_argument(
        "folder", help="a run folder, outputs/.../run_0, the folder of all its seeds, or the grid file of a sweep"
    )
    arguments = parser.parse_args(argv)
    folder = Path(arguments.folder)
    if folder.suffix in (".yaml", ".yml"):
        print(f"report of the sweep: {write_sweep_report(load_grid(folder))}")
        return
    runs = runs_in(folder)
    for run in runs:
        print(f"report: {render_report(run)}")
        print(f"model card: {render_model_card(run)}")
    if runs[0].path != folder:
        print(f"summary: {render_summary(runs)}")
        print(f"report of all seeds: {render_experiment_report(runs)}")


if __name__ == "__main__":
    run_command(main)
