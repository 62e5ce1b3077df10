"""The picture of a search: what each value of each recipe key reached."""

from __future__ import annotations

from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from llmcls.recipe.metric_names import in_words
from llmcls.results.pictures import COLOURS, INK, new_figure, save_pictures, style
from llmcls.search.study import Search, best_first, counted

# Diagrams beside each other, and all; a space of more keys is cut.
COLUMNS, MOST = 3, 9
INCHES = (3.2, 2.6)


def write_search_picture(search: Search, metric: str) -> None:
    """Write ``<name>.png`` and ``<name>.svg``: one diagram for each key, with one point for each trial.

    A point of a trial that ended early is hollow, at what it had reached. The best trial is orange.

    Parameters
    ----------
    search : Search
    metric : str
        What the trials are compared by.
    """
    trials = [
        trial
        for trial in counted(search.study)
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and trial.value is not None
    ]
    keys = list(search.space.distributions)[:MOST]
    if not trials or not keys:
        return
    columns = min(COLUMNS, len(keys))
    rows = -(-len(keys) // columns)
    figure = new_figure((columns * INCHES[0], rows * INCHES[1] + 0.4))
    figure.suptitle(f"{in_words(metric)} on validation, by trial", color=INK)
    best = best_first(search.study)[:1]
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, key in zip(panels, keys, strict=False):
        _draw(axes, key, search.space.distributions[key], trials, best)
    for axes in panels[len(keys) :]:
        axes.set_visible(False)
    save_pictures(search.folder / search.name, figure)


def _draw(
    axes: Any, key: str, distribution: BaseDistribution, trials: list[FrozenTrial], best: list[FrozenTrial]
) -> None:
    """The diagram of one key."""
    choices: list[Any] = list(distribution.choices) if isinstance(distribution, CategoricalDistribution) else []
    for trial in trials:
        value = trial.params[key]
        colour = COLOURS[1] if trial in best else COLOURS[0]
        full = trial.state == TrialState.COMPLETE
        place = choices.index(value) if choices else value
        axes.plot(
            place, trial.value, "o", color=colour, mfc=colour if full else "none", alpha=1 if trial in best else 0.7
        )
    if choices:
        axes.set_xticks(range(len(choices)), [_shortened(str(choice)) for choice in choices])
        axes.set_xlim(-0.5, len(choices) - 0.5)
    elif getattr(distribution, "log", False):
        axes.set_xscale("log")
    style(axes, "", key)


def _shortened(name: str) -> str:
    return name if len(name) <= 10 else f"{name[:9]}…"
