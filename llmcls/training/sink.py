"""What a tracker is to a run: where numbers and tables go, and how the run is called there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcls.common.files import read_json, write_json
from llmcls.recipe.schema import Recipe
from llmcls.results.dashboard import Dashboard
from llmcls.results.run_folder import RunFolder

Numbers = dict[str, float]
# The longest tag that wandb takes.
LONGEST_TAG = 64


@dataclass(frozen=True)
class Sink:
    """What a tracker does with numbers and tables, and how it ends."""

    send: Callable[[int, Numbers], None]
    show: Callable[[int, Dashboard], None]
    close: Callable[[], None]


@dataclass(frozen=True)
class TrackedRun:
    """A run, as trackers see it.

    Attributes
    ----------
    folder : RunFolder
    recipe : Recipe
        With one seed.
    config : dict
        The recipe and the environment as plain values.
    resumed_step : int
        The step that the run resumes after; 0 for a new run.
    """

    folder: RunFolder
    recipe: Recipe
    config: dict[str, Any]
    resumed_step: int

    @property
    def experiment(self) -> str:
        """Model, data set and run name, joined by "/"."""
        parts = self.folder.path.parts
        return "/".join(parts[-4 if self.recipe.exp.run_name else -3 : -1])

    @property
    def name(self) -> str:
        """The experiment and the folder of the run."""
        return f"{self.experiment}/{self.folder.path.name}"

    @property
    def group(self) -> str:
        """What the run is shown together with."""
        return self.recipe.train.tracking_group or self.experiment

    @property
    def job_type(self) -> str:
        """A run of a group that is not its experiment is a trial: one of a search, a sweep or a curve."""
        return "trial" if self.recipe.train.tracking_group else "train"

    @property
    def tags(self) -> list[str]:
        """Model, data set, and the tags of the recipe."""
        model = Path(self.recipe.model.model_name).name
        tags = [model, self.recipe.data.dataset_name, *self.recipe.train.tracking_tags]
        return list(dict.fromkeys(tag[:LONGEST_TAG] for tag in tags if tag))

    def stored_id(self, tracker: str) -> str | None:
        """The id that the run has in a tracker; None for a new run, also if an earlier one began here."""
        if not self.resumed_step or not self.folder.trackers.is_file():
            return None
        found: str | None = read_json(self.folder.trackers).get(tracker)
        return found

    def store_id(self, tracker: str, identity: str) -> None:
        """Keep the id of the run in a tracker."""
        known = read_json(self.folder.trackers) if self.folder.trackers.is_file() else {}
        write_json(self.folder.trackers, known | {tracker: identity})

    @property
    def parameters(self) -> dict[str, str]:
        """The configuration as text, with keys joined by "."."""
        return _flat(self.config, "")


def _flat(values: dict[str, Any], prefix: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        elif value is not None:
            found[f"{prefix}{name}"] = str(value)
    return found
