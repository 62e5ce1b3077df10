"""Train a smaller model on what trained runs say: ``llmcls distill --run TEACHER --texts unlabelled.csv RECIPE``.

The teacher predicts the texts without labels, as `llmcls.predict` does; its probabilities become soft labels of further
training rows, beside the labelled ones of the recipe; and the recipe is trained with them, as `llmcls.train` does. Each
part is a process of its own, with the profile that is given. Run the same command again to resume.
"""

from __future__ import annotations

import sys
from pathlib import Path

from llmcls.common.command import add_recipe_arguments, command_parser, run_command
from llmcls.common.parts import run_part
from llmcls.common.signals import watch_signals
from llmcls.engine.profiles import launcher_of
from llmcls.prediction.distillation import (
    Distillation,
    check_distillation,
    is_predicted,
    note_predicted,
    overrides_of,
    write_rows,
)
from llmcls.recipe.load import load_recipe
from llmcls.results.finished_runs import open_run
from llmcls.results.run_folder import RunFolder


def main(argv: list[str] | None = None) -> None:
    """Let the teachers predict, write the training rows, and train the student."""
    parser = command_parser("distill", "Train a smaller model on what trained runs say about texts without labels.")
    parser.add_argument("--run", action="append", required=True, help="the teacher, outputs/.../run_0; may be repeated")
    parser.add_argument("--texts", required=True, help="a table of texts without labels")
    parser.add_argument("--base-model", help="where the pretrained model of the teacher is now, if it moved")
    parser.add_argument("--profile", help="start with `accelerate launch` and this profile; default: one process")
    parser.add_argument("--name", default="distilled", help="name of the student's runs; default: distilled")
    add_recipe_arguments(parser)
    arguments = parser.parse_intermixed_args(argv)
    watch_signals()
    named = [*arguments.overrides, f"exp.run_name={arguments.name}", "data.soft_labels=true"]
    recipe = load_recipe(arguments.recipe, named)
    teachers = [open_run(RunFolder(Path(folder)), arguments.base_model) for folder in arguments.run]
    plan = Distillation(recipe, teachers, arguments.texts)
    labels = check_distillation(plan)
    start = [sys.executable, *(launcher_of(arguments.profile) if arguments.profile else []), "-m"]
    if not is_predicted(plan):
        print(f"teacher: {', '.join(plan.names)} -> {plan.predictions}", flush=True)
        options = ["--input", arguments.texts, "--output", str(plan.predictions)]
        options += ["--base-model", arguments.base_model] if arguments.base_model else []
        run_part([*start, "llmcls.predict", "--run", *arguments.run, *options], "the prediction of the teacher")
        note_predicted(plan)
    rows = write_rows(plan, labels)
    empty = f", {rows['empty']:,} empty texts left out" if rows["empty"] else ""
    print(f"student: {rows['labelled']:,} labelled rows, {rows['taught']:,} from the teacher{empty}", flush=True)
    run_part([*start, "llmcls.train", arguments.recipe, *arguments.overrides, *overrides_of(plan)], "the training")


if __name__ == "__main__":
    run_command(main)
