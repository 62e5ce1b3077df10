"""The console command: ``llmcls COMMAND ...`` does what ``python -m llmcls.COMMAND ...`` does.

Only ``llmcls train`` does more: it chooses a profile and starts the processes that train.

Each command has its own parser. This module only lists the commands and passes the arguments on, so that
``llmcls --help`` is quick and both forms behave the same.
"""

from __future__ import annotations

import typer

from llmcls.common.command import import_command, run_command

# Group and description of each command, in the order of the help text.
COMMANDS = {
    "train": ("Train and predict", "Fine-tune a text classifier: every seed of a recipe."),
    "predict": ("Train and predict", "Classify texts with a trained run: a table, standard input, or one text."),
    "init": ("Before training", "Look at a table, and write a commented recipe for it."),
    "check": ("Before training", "Check a recipe, its data and its model, without training."),
    "doctor": ("Before training", "Find out whether training works on this machine."),
    "profile": ("Before training", "Choose the profile that fits a recipe and the hardware."),
    "rehearse": ("Before training", "Try a multi-GPU profile on CPU processes, with the recipe in miniature."),
    "prepare": ("Before training", "Write a known dataset, or any dataset of the hub, as CSV files."),
    "quickstart": ("Before training", "Write the demo's data and get its pretrained model."),
    "scratch": ("Before training", "Write a small random decoder and a tokenizer for the texts of a recipe."),
    "curve": ("Before training", "How many labels do I need? Train on growing samples and draw the curve."),
    "tune": ("Before training", "Search for better values of a recipe; several processes can share the search."),
    "distill": ("After training", "Train a smaller model on what a run says about texts without labels."),
    "runs": ("After training", "List and rank the runs of a folder: metric, interval, seeds, state, time."),
    "compare": ("After training", "Is run B better than run A, or is the difference noise?"),
    "errors": ("After training", "Show mistakes of a run and probable errors in the data."),
    "thresholds": ("After training", "Tune the thresholds of a finished run again, without training."),
    "decide": ("After training", "Decide predictions again: abstain where unsure, or give sets of labels."),
    "label": ("After training", "Which texts to label next: those that a run is unsure of, no two alike."),
    "reproduce": ("After training", "Start a finished run again, and say whether it comes out the same."),
    "report": ("After training", "Render report.html, the model card and the summary of finished runs again."),
    "export": ("After training", "Export a run as a folder that transformers loads, and prove that it agrees."),
    "serve": ("After training", "Serve runs over HTTP, many clients at once."),
    "push": ("After training", "Put a run with its model card on the hub."),
    "folder": ("For job scripts", "Print the folder of a recipe's results."),
    "sweep": ("For job scripts", "Answer one question about a sweep, for slurm/sweep.sh."),
}

# What starts the processes of a command that has several. It imports little before it does.
STARTED_BY = {"train": "llmcls.training.launcher"}

app = typer.Typer(
    name="llmcls",
    help="Fine-tune language models for text classification, from a laptop to a cluster.",
    epilog="`llmcls COMMAND --help` explains a command. `llmcls train` chooses a profile; to choose it yourself: "
    "accelerate launch --config_file accel_configs/PROFILE.yaml -m llmcls.train RECIPE",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _register(name: str, group: str, description: str) -> None:
    """Add a command to `app`; its module is imported when it is called."""

    def command(context: typer.Context) -> None:
        run_command(lambda: import_command(STARTED_BY.get(name, f"llmcls.{name}")).main(context.args))

    # The parser of the command reads everything after its name, including --help.
    settings = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    app.command(
        name,
        help=description,
        rich_help_panel=group,
        context_settings=settings,
        add_help_option=False,
        options_metavar="",
    )(command)


for _name, (_group, _description) in COMMANDS.items():
    _register(_name, _group, _description)
