"""The folders of an experiment and of a run: every path in them, and who may write there.

Imports neither torch nor accelerate, so that `llmcls.folder` and `llmcls.sweep` answer job scripts quickly.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmcls.common.folder_names import folder_name_problem
from llmcls.common.strict_yaml import YamlProblem, read_yaml
from llmcls.common.user_error import UserError
from llmcls.evaluation.baseline_store import BaselineStore
from llmcls.recipe.differences import differing_keys
from llmcls.recipe.load import recipe_to_dict
from llmcls.recipe.schema import SECTIONS, Recipe

# The splits that a run predicts, the most telling one last.
PREDICTED_SPLITS = ("validation", "test")
# In the folder of a checkpoint: how far the run was.
PROGRESS = "progress.json"


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
    def trackers(self) -> Path:
        """The ids of the run in wandb and MLflow, so that a resumed run is the same one there."""
        return self.path / "trackers.json"

    @property
    def model(self) -> Path:
        """Adapter and head (or the whole model), tokenizer, labels, recipe.

        In a folder that `llmcls.push` made, they lie beside the other files, where the hub and peft look for them.
        """
        return self.path if (self.path / "labels.json").is_file() else self.path / "model"

    @property
    def model_recipe(self) -> Path:
        """The recipe that the model was trained with."""
        return self.model / "recipe.yaml"

    @property
    def labels(self) -> Path:
        """The label space of the model."""
        return self.model / "labels.json"

    @property
    def model_card(self) -> Path:
        """What the model is, how good it is, and how to use it."""
        return self.model / "README.md"

    @property
    def last_checkpoint(self) -> Path:
        """What a run needs to resume."""
        return self.path / "checkpoints" / "last"

    @property
    def previous_checkpoint(self) -> Path:
        """What a run resumes from if `last_checkpoint` is damaged."""
        return self.path / "checkpoints" / "previous"

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
        """``output_root/<model>/<dataset>[/<run_name>]``; for a local model, the last part of its folder's name.

        Raises
        ------
        UserError
            If the model's name cannot be the name of a folder.
        """
        name = recipe.model.model_name
        model = Path(name).resolve().name if os.path.isdir(name) else name.replace("/", "__")
        problem = folder_name_problem(model)
        if problem:
            shown = name if len(name) <= 60 else f"{name[:60]}..."
            raise recipe.error(
                "model.model_name", f"is {shown!r}, whose folder name {problem}; give a model or a folder"
            )
        root = Path(recipe.exp.output_root) / model / recipe.data.dataset_name
        return cls(root / recipe.exp.run_name if recipe.exp.run_name else root)

    def run(self, number: int) -> RunFolder:
        """The folder of a seed, by its place in the recipe's list of seeds."""
        return RunFolder(self.path / f"run_{number}")

    @property
    def lock(self) -> Path:
        """Held by the training that writes here."""
        return self.path / ".lock"

    @property
    def summary(self) -> Path:
        """Mean and deviation over seeds, as a table."""
        return self.path / "summary.md"

    @property
    def summary_json(self) -> Path:
        """The same for programs."""
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        """The report of all seeds."""
        return self.path / "report.html"

    @property
    def baselines(self) -> BaselineStore:
        """The metrics and the decisions of the baselines."""
        return BaselineStore(self.path / "baselines.json", self.path / "baseline_decisions.npz")

    @property
    def validation_rows(self) -> Path:
        """The ids of the rows that are held out of the training file for validation."""
        return self.path / "validation_rows.json"

    @property
    def probe(self) -> Path:
        """The linear probe of the frozen model, for all seeds."""
        return self.path / "probe.safetensors"


def saved_recipe(folder: RunFolder) -> dict[str, Any]:
    """The recipe in a run folder, as plain values.

    Raises
    ------
    UserError
        If it cannot be read.
    """
    try:
        saved = read_yaml(folder.recipe)
    except (OSError, YamlProblem):
        saved = None
    if not isinstance(saved, dict) or not all(isinstance(saved.get(section), dict) for section in SECTIONS):
        raise UserError(f"{folder.recipe} is damaged, so nobody can say whose run this is; move {folder.path} away")
    return saved


def conflict_with(folder: RunFolder, recipe: Recipe, seed: int) -> str | None:
    """Why the run in a folder is not one of this recipe and seed; None if it is, or if there is no run.

    Returns
    -------
    str, optional
        The first key that differs, and both values.

    Raises
    ------
    UserError
        If the folder holds something else than a run, or leads out of ``exp.output_root``.
    """
    root, checkpoints = Path(recipe.exp.output_root), folder.last_checkpoint.parent
    require_no_links(root, folder.path)
    for parent in (folder.path, checkpoints):
        for path in parent.iterdir() if parent.is_dir() else ():
            require_no_links(root, path)
    if folder.path.exists() and not folder.path.is_dir():
        raise UserError(f"{folder.path} is a file, where the folder of a run should be; move it away")
    if not folder.recipe.exists():
        if folder.path.exists() and not all(path.name.endswith(".partial") for path in folder.path.iterdir()):
            raise UserError(f"{folder.path} is not empty, and holds no run; move its files away")
        return None
    if not checkpoints.exists() and not folder.model.exists() and not folder.metrics.exists():
        # It died before it saved anything, so nothing would be lost.
        return None
    old = saved_recipe(folder)
    differing = differing_keys(old, recipe)
    if old["exp"].get("seeds") != [seed]:
        differing.insert(0, "exp.seeds")
    if not differing:
        return None
    section, _, key = differing[0].partition(".")
    now = [seed] if key == "seeds" else recipe_to_dict(recipe)[section][key]
    more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
    return f"{differing[0]} was {old[section].get(key)!r}, is now {now!r}{more}"


def refuse_conflict(folder: RunFolder, recipe: Recipe, seed: int) -> None:
    """Refuse to replace the run of another recipe or seed, unless the recipe says so.

    Raises
    ------
    UserError
        Naming the first key that differs, both values, and how to keep or replace the run.
    """
    conflict = conflict_with(folder, recipe, seed)
    if conflict and not recipe.exp.overwrite:
        raise UserError(
            f"{folder.path} holds a run of another recipe: {conflict}; "
            "set exp.run_name to keep both, or exp.overwrite=true to replace it"
        )


def require_no_links(root: Path, folder: Path) -> None:
    """Refuse links between the root of all results and a folder in it, because they lead somewhere else.

    Raises
    ------
    UserError
        Naming the link.
    """
    parents = [folder, *folder.parents]
    for path in parents[: parents.index(root)] if root in parents else [folder]:
        if path.is_symlink():
            raise UserError(
                f"{path} is a link; a run writes only inside {root}: remove the link, or set exp.output_root to the "
                "folder that it should write to"
            )


def recipe_of_run(recipe: Recipe, seed: int) -> Recipe:
    """The recipe of a single run: the same with this seed only, and without permission to overwrite."""
    return replace(recipe, exp=replace(recipe.exp, seeds=[seed], overwrite=False))
