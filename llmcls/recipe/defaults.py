"""Defaults that depend on other keys of the recipe."""

from __future__ import annotations

from llmcls.recipe.metric_names import default_metric
from llmcls.recipe.schema import Recipe

# Trained weights from which on 8-bit AdamW is worth its time. It stores the two moments of a weight in 2 bytes instead
# of 8, which saves 0.6 GB here, but starts several kernels for each tensor, where the fused AdamW starts few for all.
EIGHT_BIT_FROM = 100_000_000


def selection_metric(recipe: Recipe) -> str:
    """The metric of choice: it selects the best model, and thresholds are tuned for it."""
    return recipe.train.metric_for_best_model or default_metric(recipe.model.problem_type)


def micro_batch_tokens(recipe: Recipe) -> int:
    """Tokens of a forward pass in training, as far as the recipe alone determines it.

    Without a number in the recipe (or with ``auto``, which is measured later) this is what ``batch_size`` texts of full
    length need: the memory that the author of the recipe planned for.
    """
    given = recipe.train.micro_batch_tokens
    return given if isinstance(given, int) else recipe.train.batch_size * recipe.data.max_length


def eval_batch_tokens(recipe: Recipe) -> int:
    """Tokens of a forward pass in evaluation: without activations to keep, four times those of training.

    With ``micro_batch_tokens: auto`` the measured value is not used, because a prediction must cut its batches as the
    evaluation of the run did.
    """
    given = recipe.train.eval_batch_size
    return given * recipe.data.max_length if given else 4 * micro_batch_tokens(recipe)


def checkpoints_activations(recipe: Recipe) -> bool:
    """Whether activations are recomputed in the backward pass, as far as the recipe alone determines it.

    The default is to recompute them for 4-bit models only. On GPUs with enough memory a run decides otherwise.
    """
    wanted = recipe.train.gradient_checkpointing
    return recipe.model.use_4bit if wanted is None else wanted


def wants_8bit_optimizer(recipe: Recipe, trained: float) -> bool:
    """Whether a recipe that trains so many weights wants 8-bit AdamW, where engine and device allow it."""
    return recipe.model.use_4bit and recipe.train.optim_8bit_when_4bit and trained >= EIGHT_BIT_FROM
