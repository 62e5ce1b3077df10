"""The runs of a learning curve, as the grid of a sweep: one run for each number of rows and each seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmcls.common.user_error import UserError
from llmcls.data.steps import global_batch_size, steps_per_epoch
from llmcls.recipe.grid import Grid
from llmcls.recipe.schema import Recipe

# Evaluations of a run whose recipe does not say how often to evaluate: small samples have very short epochs.
EVALUATIONS = 6


@dataclass(frozen=True)
class CurveRequest:
    """What a learning curve is asked for.

    Attributes
    ----------
    recipe : Recipe
        With the overrides.
    overrides : list of str
    profile : str
        For Slurm.
    sizes : list of int
        Numbers of training rows.
    seeds : list of int
        Each draws its own sample of rows, and trains on it.
    min_steps : int
        Optimizer steps of a run at least: small samples are read in more epochs than the recipe says.
    name : str
        Of the runs and the files.
    """

    recipe: Recipe
    overrides: list[str]
    profile: str
    sizes: list[int]
    seeds: list[int]
    min_steps: int
    name: str


def parse_sizes(text: str, rows: int) -> list[int]:
    """The sizes of a command line, in ascending order.

    Parameters
    ----------
    text : str
        Numbers and ``all``, separated by commas.
    rows : int
        Rows of the training file.

    Raises
    ------
    UserError
        If a size is not a number of rows that the file has.

    Examples
    --------
    >>> parse_sizes("200, all,50", 1000)
    [50, 200, 1000]
    """
    sizes = set()
    for word in text.split(","):
        number = str(rows) if word.strip() == "all" else word.strip()
        if not number.isdigit() or not 1 <= int(number) <= rows:
            raise UserError(
                f"--sizes: {word.strip()!r} is not a number of rows; give numbers from 1 to {rows} (the rows of the "
                "training file) and `all`, separated by commas"
            )
        sizes.add(int(number))
    return sorted(sizes)


def curve_grid(request: CurveRequest) -> Grid:
    """The runs of a learning curve. Every run measures the baselines on its sample too."""
    cases: list[dict[str, Any]] = [_case(request, size) for size in request.sizes]
    overrides = [*request.overrides, "data.train_rows_seed={seed}", "exp.baselines=true"]
    source = f"{request.name}.yaml"
    return Grid(source, request.recipe.source, request.profile, request.seeds, {request.name: cases}, overrides)


def _case(request: CurveRequest, size: int) -> dict[str, Any]:
    """The keys that change with the number of rows."""
    train = request.recipe.train
    per_epoch = steps_per_epoch(size, global_batch_size(request.recipe, 1))
    epochs = max(train.num_train_epochs, -(-request.min_steps // per_epoch))
    steps = min(epochs * per_epoch, train.max_steps or epochs * per_epoch)
    case = {"data.train_rows": size, "train.num_train_epochs": epochs}
    if train.eval_steps is None:
        case["train.eval_steps"] = max(per_epoch, -(-steps // EVALUATIONS))
    return case
