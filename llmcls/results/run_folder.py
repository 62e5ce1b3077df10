"""The folders of an experiment and of a run: every path in them, and who may write there.

Imports neither torch nor accelerate, so that `llmcls.folder` and `llmcls.sweep` answer job scripts quickly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from llmcls.common.user_error import UserError
from llmcls.evaluation.baseline_store import BaselineStore
from llmcls.recipe.differences import differing_keys
from llmcls.recipe.load import recipe_to_dict
from llmcls.recipe.schema import Recipe

# The splits that a run predicts, the most telling one last.
PREDICTED_SPLITS = ("validation", "test")


@dataclass(frozen=True)
class RunFolder:
    """The paths in the folder of one trained seed."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe with this seed."""
        return self.path / "recipe.yaml"

    @property
    def environment(self) -> Path:
        """Versions, devices and processes."""
        return self.path / "environment.json"

    @property
    def log(self) -> Path:
        """The log as text."""
        return self.path / "log.txt"

    @property
    def metrics(self) -> Path:
        """The final metrics. Written last: its presence says that the run is finished."""
        return self.path / "metrics.json"

    @property
    def metrics_log(self) -> Path:
        """Every number that was logged, one JSON line per step and split."""
        return self.path / "metrics.jsonl"

    @property
    def thresholds(self) -> Path:
        """Decision thresholds by label."""
        return self.path / "thresholds.json"

    @property
    def calibration(self) -> Path:
        """How logits become probabilities."""
        return self.path / "calibration.json"

    @property
    def report(self) -> Path:
        """The report of this run."""
        return self.path / "report.html"

    @property
    def tensorboard(self) -> Path:
        """Event files for TensorBoard."""
        return self.path / "logs"

    @property
    def model(self) -> Path:
        """Adapter and head (or the whole model), tokenizer, labels, recipe."""
        return self.path / "model"

    @property
    def model_recipe(self) -> Path:
        """The recipe that the model was trained with."""
        return self.model / "recipe.yaml"

    @property
    def labels(self) -> Path:
        """The label space of the model."""
        return self.model / "labels.json"

    @property
    def last_checkpoint(self) -> Path:
        """What a run needs to resume."""
        return self.path / "checkpoints" / "last"

    def best_checkpoint(self, rank: int = 1) -> Path:
        """The trained weights of the best evaluation, or of the ones that were best before (rank 2, 3, ...)."""
        return self.path / "checkpoints" / ("best" if rank == 1 else f"best_{rank}")

    def predictions(self, split: str) -> Path:
        """The predictions of "validation" or "test"."""
        return self.path / f"predictions_{split}.jsonl"

    def errors(self, split: str) -> Path:
        """What `llmcls.errors` found in a split."""
        return self.path / f"errors_{split}.json"

    @property
    def finished(self) -> bool:
        """Whether the run was trained and evaluated to the end."""
        return self.metrics.is_file() and self.labels.is_file() and self.model_recipe.is_file()

    def predicted_splits(self) -> list[str]:
        """The splits that the run has predictions of."""
        return [split for split in PREDICTED_SPLITS if self.predictions(split).is_file()]

    @property
    def experiment(self) -> ExperimentFolder:
        """The folder of all seeds."""
        return ExperimentFolder(self.path.parent)


@dataclass(frozen=True)
class ExperimentFolder:
    """The paths in the folder of an experiment, which holds the runs of all its seeds."""

    path: Path

    @classmethod
    def of(cls, recipe: Recipe) -> ExperimentFolder:
        """``output_root/<model>/<dataset>[/<run_name>]``; for a local model, the last part of its folder's name."""
        name = recipe.model.model_name
        model = Path(name).resolve().name if Path(name).is_dir() else name.replace("/", "__")
        root = Path(recipe.exp.output_root) / model / recipe.data.dataset_name
        return cls(root / recipe.exp.run_name if recipe.exp.run_name else root)

    def run(self, number: int) -> RunFolder:
        """The folder of a seed, by its place in the recipe's list of seeds."""
        return RunFolder(self.path / f"run_{number}")

    @property
    def summary(self) -> Path:
        """Mean and deviation over seeds, as a table."""
        return self.path / "summary.md"

    @property
    def summary_json(self) -> Path:
        """The same for programs."""
        return self.path / "summary.json"

    @property
    def baselines(self) -> BaselineStore:
        """The metrics and the decisions of the baselines."""
        return BaselineStore(self.path / "baselines.json", self.path / "baseline_decisions.npz")

    @property
    def probe(self) -> Path:
        """The linear probe of the frozen model, for all seeds."""
        return self.path / "probe.safetensors"


def refuse_conflict(folder: RunFolder, recipe: Recipe, seed: int) -> None:
    """Refuse to replace the run of another recipe or seed.

    Raises
    ------
    UserError
        Naming the first key that differs, both values, and how to keep or replace the run.
    """
    if recipe.exp.overwrite or not folder.recipe.exists():
        return
    old = yaml.safe_load(folder.recipe.read_text(encoding="utf-8"))
    differing = differing_keys(old, recipe)
    if old["exp"]["seeds"] != [seed]:
        differing.insert(0, "exp.seeds")
    if differing:
        section, _, key = differing[0].partition(".")
        now = [seed] if key == "seeds" else recipe_to_dict(recipe)[section][key]
        more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
        raise UserError(
            f"{folder.path} holds a run of another recipe: {differing[0]} was {old[section].get(key)!r}, is now {now!r}"
            f"{more}; set exp.run_name to keep both, or exp.overwrite=true to replace it"
        )


def recipe_of_run(recipe: Recipe, seed: int) -> Recipe:
    """The recipe of a single run: the same with this seed only, and without permission to overwrite."""
    return replace(recipe, exp=replace(recipe.exp, seeds=[seed], overwrite=False))
