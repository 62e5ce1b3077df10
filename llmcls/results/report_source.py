"""What a report is made from: the files of finished runs of one recipe, read once."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llmcls.common.files import read_json
from llmcls.data.labels import LabelSpace
from llmcls.evaluation.bootstrap import Marks, mean_intervals
from llmcls.evaluation.thresholds import Thresholds, load_thresholds
from llmcls.recipe.schema import Recipe
from llmcls.results.predictions import Predictions, read_predictions
from llmcls.results.run_folder import PREDICTED_SPLITS, RunFolder


@dataclass(frozen=True)
class SeedResult:
    """The files of one run.

    Attributes
    ----------
    folder : RunFolder
    metrics : dict
        The content of metrics.json.
    environment : dict
        The content of environment.json; empty without the file.
    log : list of dict
        The lines of metrics.jsonl about training and validation; empty without the file.
    """

    folder: RunFolder
    metrics: dict[str, Any]
    environment: dict[str, Any]
    log: list[dict[str, Any]]

    @property
    def seed(self) -> int:
        """The seed that was trained."""
        seed: int = self.metrics["seed"]
        return seed

    def logged(self, split: str) -> list[dict[str, Any]]:
        """The numbers that were logged of "train" or "validation", in the order of the steps.

        Without metrics.jsonl, those of the evaluations, which metrics.json repeats.
        """
        if self.log:
            return [line for line in self.log if line["split"] == split]
        if split == "train":
            return [{"step": entry["step"], "loss": entry["train_loss"]} for entry in self.metrics["history"]]
        return [
            {"step": entry["step"], **entry["validation"], "at_half": entry.get("at_half", {})}
            for entry in self.metrics["history"]
            if "validation" in entry
        ]


@dataclass(frozen=True)
class Source:
    """Finished runs of one recipe.

    Attributes
    ----------
    recipe : Recipe
    labels : LabelSpace
    seeds : list of SeedResult
        At least one.
    """

    recipe: Recipe
    labels: LabelSpace
    seeds: list[SeedResult]

    @property
    def splits(self) -> list[str]:
        """The splits that all runs were evaluated on, the most telling one last."""
        return [s for s in ("train", "validation", "test") if all(s in seed.metrics for seed in self.seeds)]

    @property
    def runs(self) -> list[RunFolder]:
        """The folders."""
        return [seed.folder for seed in self.seeds]

    @cached_property
    def predictions(self) -> list[Predictions]:
        """The predictions of each run on the last of `splits`; empty if it was not predicted."""
        split = self.splits[-1] if self.splits else None
        if split not in PREDICTED_SPLITS or not all(run.predictions(split).is_file() for run in self.runs):
            return []
        return [read_predictions(run.predictions(split), self.labels) for run in self.runs]

    @cached_property
    def thresholds(self) -> list[Thresholds]:
        """Those of each run."""
        return [load_thresholds(run.thresholds, self.labels.names) for run in self.runs if run.thresholds.is_file()]

    @property
    def has_thresholds(self) -> bool:
        """Whether thresholds decide; for classes the most probable one is taken."""
        return self.labels.multi_label or self.labels.binary

    @property
    def tuned(self) -> bool:
        """Whether any run decides by other thresholds than 0.5."""
        return self.has_thresholds and any(value != 0.5 for found in self.thresholds for value in found.values)

    def values(self, split: str, name: str) -> list[float | None]:
        """A metric of each run."""
        return [seed.metrics[split].get(name) for seed in self.seeds]

    def mean(self, split: str, name: str) -> float | None:
        """The mean of a metric over the runs; None if it is undefined for one of them."""
        return mean_of(self.values(split, name))

    @cached_property
    def intervals(self) -> dict[str, list[float]]:
        """95 % intervals on the last split: of a single run as in metrics.json, of several that of their mean."""
        if not self.splits:
            return {}
        first: dict[str, list[float]] = self.seeds[0].metrics[self.splits[-1]].get("intervals", {})
        if len(self.seeds) == 1 or not first or not self.predictions:
            return first if len(self.seeds) == 1 else {}
        true = self.predictions[0].true_marks(self.labels)
        if any(found.ids != self.predictions[0].ids for found in self.predictions):
            return {}
        return mean_intervals(true, [found.predicted for found in self.predictions], binary=self.labels.binary)

    @cached_property
    def mean_probabilities(self) -> Marks:
        """The mean probabilities of the runs on the last split, float [rows, labels]."""
        if self.labels.many:
            total: Any = sum(found.probabilities for found in self.predictions)
            return total / len(self.predictions)
        return np.asarray(np.mean([found.probabilities for found in self.predictions], axis=0))


def mean_of(values: list[float | None]) -> float | None:
    """The mean; None if a value is missing.

    Examples
    --------
    >>> mean_of([1.0, 2.0]), mean_of([1.0, None])
    (1.5, None)
    """
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def read_seed(folder: RunFolder, metrics: dict[str, Any] | None = None) -> SeedResult:
    """The files of one run.

    Parameters
    ----------
    folder : RunFolder
    metrics : dict, optional
        The content of metrics.json, if it is not written yet.
    """
    environment = read_json(folder.environment) if folder.environment.is_file() else {}
    return SeedResult(folder, metrics or read_json(folder.metrics), environment, _log_of(folder.metrics_log))


def _log_of(path: Path) -> list[dict[str, Any]]:
    """The lines about training and validation; a line that a full disk cut off is left out."""
    lines: list[dict[str, Any]] = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8").splitlines():
            if text.endswith("}") and ('"train"' in text or '"validation"' in text):
                lines.append(json.loads(text))
    return lines
