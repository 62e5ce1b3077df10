"""Defaults that depend on other keys of the recipe."""

from __future__ import annotations

from llmcls.recipe.schema import Recipe


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
    """Whether activations are recomputed in the backward pass; by default only for 4-bit models."""
    wanted = recipe.train.gradient_checkpointing
    return recipe.model.use_4bit if wanted is None else wanted
