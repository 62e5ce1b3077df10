"""Search for better recipe values: ``python -m llmcls.tune RECIPE --space space.yaml [--trials 40] [key=value ...]``.

Each trial is a training in a process of its own, with the profile that is given; one that falls behind the others at
the same evaluation ends early. At the end, the best trials and the recipe itself are trained with all seeds, and the
best recipe is written. Any number of processes, on one machine or many, can run the same command at the same time and
share the search: `slurm/tune.sh` is an array of them. Run the same command again to resume.
"""

from __future__ import annotations

import dataclasses
import sys

from llmcls.common.command import add_recipe_arguments, command_parser, run_command
from llmcls.common.optional import OptionalImport
from llmcls.common.signals import EXIT_INTERRUPTED, Interrupted, interrupted_code, watch_signals
from llmcls.common.user_error import UserError
from llmcls.engine.profiles import launcher_of
from llmcls.recipe.defaults import selection_metric
from llmcls.recipe.load import load_recipe
from llmcls.recipe.metric_names import metric_direction
from llmcls.results.run_folder import ExperimentFolder

SEARCHING = OptionalImport("a search", "tune")
with SEARCHING:
    from llmcls.search.drive import Request, finish_search, train_next
    from llmcls.search.space import load_space
    from llmcls.search.study import open_search


def main(argv: list[str] | None = None) -> None:
    """Train trials until the search has enough, then the finalists."""
    parser = command_parser("tune", "Search for better values of a recipe; several processes can share the search.")
    add_recipe_arguments(parser)
    parser.add_argument("--space", required=True, help="a YAML file: recipe keys with lists or ranges of values")
    parser.add_argument("--trials", type=int, default=40, help="trials of the whole search; default: 40")
    parser.add_argument("--finalists", type=int, default=3, help="trials to train with all seeds; default: 3")
    parser.add_argument("--seeds", default="1,2,3", help="of the finalists; trials have the first; default: 1,2,3")
    parser.add_argument("--profile", help="train with `accelerate launch` and this profile; default: in one process")
    parser.add_argument("--name", default="tune", help="first part of the names of runs and files; default: tune")
    arguments = parser.parse_intermixed_args(argv)
    SEARCHING.require()
    watch_signals()
    seeds = [word.strip() for word in arguments.seeds.split(",")]
    if not all(word.isdigit() for word in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds is {arguments.seeds!r}; give different whole numbers, separated by commas")
    if arguments.trials < 1 or arguments.finalists < 1:
        raise UserError("--trials and --finalists must be at least 1")
    recipe = load_recipe(arguments.recipe, [*arguments.overrides, f"exp.run_name={arguments.name}-recipe"])
    if not recipe.data.val_csv and not recipe.data.validation_split:
        raise UserError(f"{arguments.recipe}: a search needs validation rows; set data.val_csv or validation_split")
    launcher = launcher_of(arguments.profile) if arguments.profile else []
    request = Request(
        arguments.recipe,
        arguments.overrides,
        [sys.executable, *launcher, "-m", "llmcls.train"],
        selection_metric(recipe),
        arguments.trials,
        arguments.finalists,
        [int(word) for word in seeds],
    )
    space = load_space(arguments.space, arguments.recipe, arguments.overrides)
    folder = ExperimentFolder.of(dataclasses.replace(recipe, exp=dataclasses.replace(recipe.exp, run_name=None))).path
    better = metric_direction(request.metric) > 0
    search = open_search(folder, arguments.name, space, better, request.seeds[0])
    try:
        while train_next(search, request):
            pass
        finish_search(search, request)
    except Interrupted as stop:
        print(stop, file=sys.stderr, flush=True)
        sys.exit(interrupted_code(EXIT_INTERRUPTED))


if __name__ == "__main__":
    run_command(main)
