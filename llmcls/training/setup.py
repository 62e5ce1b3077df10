"""What does not change while one seed is trained."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from llmcls.data.batches import BatchSpec, Step, balanced_weights
from llmcls.data.labels import LabelSpace, count_positives, multi_hot
from llmcls.data.marks import largest_weights
from llmcls.data.splits import Split
from llmcls.data.steps import steps_per_epoch
from llmcls.engine.accelerator import autocast_dtype
from llmcls.evaluation.thresholds import Thresholds, fixed_thresholds
from llmcls.evaluation.top_metrics import Frequencies
from llmcls.model.label_weights import label_weights, mean_weight
from llmcls.model.losses import Loss, build_loss
from llmcls.recipe.schema import Recipe
from llmcls.results.run_folder import RunFolder
from llmcls.training.tracking import RunLog
from llmcls.training.utilisation import share_of_peak


@dataclass(frozen=True)
class TrainingSetup:
    """What does not change while one seed is trained.

    Attributes
    ----------
    recipe : Recipe
    seed : int
    folder : RunFolder
    accelerator : Accelerator
    labels : LabelSpace
    train_split : Split
    validation_split : Split, optional
    global_batch_size : int
        Rows of an optimizer step over all ranks.
    packed : bool
        Whether micro-batches are packed.
    max_tokens : int
        Tokens of a micro-batch.
    run_log : RunLog, optional
        On the main process only.
    token_flops : float
        See `llmcls.training.utilisation.token_flops`; 0 if it is not known.
    budget_key : str, optional
        The name under which ``max_tokens`` is stored; None if it was not measured.
    """

    recipe: Recipe
    seed: int
    folder: RunFolder
    accelerator: Accelerator
    labels: LabelSpace
    train_split: Split
    validation_split: Split | None
    global_batch_size: int
    packed: bool
    max_tokens: int
    run_log: RunLog | None = None
    token_flops: float = 0.0
    budget_key: str | None = None

    @property
    def batches(self) -> BatchSpec:
        """The recipe's batches on this number of ranks."""
        grouped = self.recipe.train.group_by_length
        return BatchSpec(self.global_batch_size, self.accelerator.num_processes, self.max_tokens, self.packed, grouped)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run, unless it stops early."""
        return total_steps(self.recipe, len(self.train_split), self.global_batch_size)

    @cached_property
    def label_weights(self) -> torch.Tensor | None:
        """The weights of the labels in the loss, float32 [labels], on the CPU; None if the recipe has none."""
        if self.recipe.train.pos_weight is None:
            return None
        positives = count_positives(self.train_split.known_labels, self.labels)
        return label_weights(self.recipe.train, self.labels, positives, len(self.train_split))

    @cached_property
    def loss_of(self) -> Loss:
        """The recipe's loss, with the weights of the labels."""
        weight = self.label_weights
        weight = None if weight is None else weight.to(self.accelerator.device)
        return build_loss(self.labels.problem_type, self.recipe.train, weight)

    def loss_scale(self, step: Step) -> float:
        """What turns the mean loss of a step into the weighted mean over its rows, where each row has one class.

        All ranks know the rows of a step, so all come to the same number.
        """
        if self.label_weights is None or self.labels.multi_label:
            return 1.0
        rows = np.concatenate([part for own in step.micro_batches for part in own])
        split = self.train_split
        values = split.known_labels if split.soft is None else split.soft
        return 1.0 / mean_weight(values[rows], self.label_weights)

    @cached_property
    def frequencies(self) -> Frequencies:
        """How frequent the labels are in training."""
        counts, train = count_positives(self.train_split.known_labels, self.labels), self.recipe.train
        return Frequencies(counts, len(self.train_split), train.propensity_a, train.propensity_b)

    @cached_property
    def row_weights(self) -> np.ndarray | None:
        """How often rows are drawn, float64 [rows]; None if each is drawn once per epoch."""
        if self.recipe.train.sampling == "uniform":
            return None
        values = self.train_split.known_labels
        if self.labels.many:
            counts = np.maximum(count_positives(values, self.labels), 1)
            return largest_weights(values, np.sqrt(counts.max() / counts))
        return balanced_weights(multi_hot(values, len(self.labels.names)))

    @property
    def thresholds(self) -> Thresholds:
        """The thresholds of a run without validation rows, which could tune them."""
        return fixed_thresholds(len(self.labels.names), at_least_one=self.recipe.train.at_least_one_label)

    def share_of_peak(self, tokens_per_second: float) -> float | None:
        """The share of the peak of the GPUs that this many tokens reach; None if their peak is not known."""
        accelerator, dtype = self.accelerator, self.recipe.model.torch_dtype
        sixteen_bits = autocast_dtype(accelerator) is not None or dtype != "float32"
        flops = self.token_flops * tokens_per_second
        return share_of_peak(flops, accelerator.device, accelerator.num_processes, sixteen_bits)

    def record(self, step: int, split: str, values: dict[str, Any]) -> None:
        """Write values to the log of the run, on the rank that has one."""
        if self.run_log is not None:
            self.run_log.write(step, split, values)


def total_steps(recipe: Recipe, rows: int, global_batch_size: int) -> int:
    """Optimizer steps of a whole run over ``rows`` training rows."""
    planned = recipe.train.num_train_epochs * steps_per_epoch(rows, global_batch_size)
    return planned if recipe.train.max_steps is None else min(planned, recipe.train.max_steps)
