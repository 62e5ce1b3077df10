"""What an epoch over real texts costs: its micro-batches, its time on a card, and the memory of its largest step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from llmcls.data.batches import BatchSpec, collate, plan_epoch
from llmcls.data.splits import Split
from llmcls.data.steps import global_batch_size, steps_per_epoch
from llmcls.model.cards import Card
from llmcls.model.step_trace import MicroBatch, StepCost, StepTracer

# Steps of an epoch that are planned to know its micro-batches; more would only take time.
SAMPLED_STEPS = 100
# Bytes that a step of AdamW moves for each trained weight: clipping reads the gradient twice and writes it; the update
# reads weight, gradient and two moments and writes all but the gradient; each has 4 bytes.
OPTIMIZER_BYTES = 40


@dataclass(frozen=True)
class PassPlan:
    """The micro-batches of an epoch on each process.

    Attributes
    ----------
    steps : int
        Optimizer steps.
    passes : float
        Micro-batches of a step.
    largest, typical : MicroBatch
        The one with the most tokens, and the one closest to their mean; with padding, as it is in memory.
    """

    steps: int
    passes: float
    largest: MicroBatch
    typical: MicroBatch


def plan_passes(tracer: StepTracer, split: Split, max_tokens: int, ranks: int = 1) -> PassPlan:
    """The micro-batches of the first epoch.

    Parameters
    ----------
    tracer : StepTracer
        Of the recipe; says whether micro-batches are packed.
    split : Split
        The training split.
    max_tokens : int
        Tokens of a micro-batch.
    ranks : int
        Number of processes.
    """
    recipe = tracer.recipe
    rows = global_batch_size(recipe, ranks)
    spec = BatchSpec(rows, ranks, max_tokens, tracer.packs, recipe.train.group_by_length)
    plan = islice(plan_epoch(split.lengths, spec, recipe.exp.seeds[0], 0), SAMPLED_STEPS)
    steps = [step.micro_batches for step in plan]

    def batches() -> Iterator[MicroBatch]:
        for step in steps:
            for share in step:
                for number, micro_batch in enumerate(share):
                    if len(micro_batch):
                        batch = collate(split, micro_batch, 0, packed=True)
                        windows = None if batch.windows is None else tuple(batch.windows)
                        yield MicroBatch(tuple(batch.lengths), windows, accumulates=number > 0)

    def size(batch: MicroBatch) -> tuple[int, bool]:
        tokens = batch.tokens if tracer.packs else len(batch.lengths) * max(batch.lengths)
        return tokens, batch.accumulates

    found = list(batches())
    mean = sum(size(batch)[0] for batch in found) / len(found)
    return PassPlan(
        steps=steps_per_epoch(len(split), rows),
        passes=sum(len(step[0]) for step in steps) / len(steps),
        largest=max(found, key=size),
        typical=min(found, key=lambda batch: abs(size(batch)[0] - mean)),
    )


def epoch_seconds(plan: PassPlan, typical: StepCost, card: Card) -> float:
    """The least time of the training steps of an epoch on a card, float seconds.

    Parameters
    ----------
    plan : PassPlan
    typical : StepCost
        Of ``plan.typical``.
    card : Card
    """
    optimizer = OPTIMIZER_BYTES * typical.trained / card.bandwidth
    return plan.steps * (plan.passes * card.seconds(typical.kernels) + optimizer)
