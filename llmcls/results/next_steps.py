"""What to do after a training: advice that follows from the figures of its runs, the most useful first."""

from __future__ import annotations

from typing import Any

from llmcls.recipe.defaults import selection_metric
from llmcls.recipe.metric_names import in_words, metric_direction
from llmcls.recipe.schema import Recipe
from llmcls.results.verdict import IN_WORDS, RunVerdict

MOST_STEPS = 3
# F1 below which a label is worth a sentence, and a loss on new texts this many times that on known ones.
WEAK_LABEL = 0.6
OVERFIT = 3.0
# An interval this wide hides most differences that matter.
WIDE_INTERVAL = 0.1


def next_steps(verdict: RunVerdict | None, recipe: Recipe, results: list[dict[str, Any]]) -> list[str]:
    """Sentences that say what to do next.

    Parameters
    ----------
    verdict : RunVerdict, optional
        What fine-tuning brought over the baselines; None if they were not measured.
    recipe : Recipe
    results : list of dict
        The content of metrics.json of each run.

    Returns
    -------
    list of str
        At most `MOST_STEPS`.
    """
    advice = [
        *_on_baselines(verdict),
        *_on_training(recipe, results),
        *_on_evaluation(verdict, results),
        *_on_labels(results),
        *_on_seeds(verdict, results),
        "Read the most confident mistakes and the labels that are probably wrong: `llmcls errors --run RUN`.",
    ]
    return advice[:MOST_STEPS]


def _on_baselines(verdict: RunVerdict | None) -> list[str]:
    """A baseline that is as good or better is the first thing to think about."""
    if verdict is None:
        return ["Set exp.baselines=true to see what a classifier without fine-tuning reaches."]
    better = [gain for gain in verdict.gains if gain.word == "worse"]
    if better:
        return [
            f"Do not deploy this model: {IN_WORDS[better[0].baseline]} is better. Train longer or with another "
            "train.learning_rate, or try a larger model.model_name."
        ]
    if any(gain.word == "noise" for gain in verdict.gains):
        return [
            "Label more texts, for training and for test: `llmcls curve` says how much more labels would bring, and "
            "more test texts make the interval shorter."
        ]
    return []


def _on_training(recipe: Recipe, results: list[dict[str, Any]]) -> list[str]:
    """Whether training was too short, or went on after it stopped helping."""
    evaluations = [[e for e in r["history"] if "validation" in e] for r in results]
    if not all(len(found) > 1 for found in evaluations):
        return []
    metric = selection_metric(recipe)
    last = [found[-1]["step"] == r["best_step"] for found, r in zip(evaluations, results, strict=True)]
    gains = [
        metric_direction(metric) * (found[-1]["validation"][metric] - found[-2]["validation"][metric])
        for found in evaluations
        if None not in (found[-1]["validation"].get(metric), found[-2]["validation"].get(metric))
    ]
    if all(last) and gains and min(gains) > 0:
        return [
            f"Train longer: {in_words(metric)} on validation was still rising at the end. Set "
            f"train.num_train_epochs={2 * recipe.train.num_train_epochs}."
        ]
    return []


def _on_evaluation(verdict: RunVerdict | None, results: list[dict[str, Any]]) -> list[str]:
    """Whether the figures themselves can be trusted, and whether the model learned its texts by heart."""
    if not any(split in results[0] for split in ("validation", "test")):
        return ["Add data.val_csv and data.test_csv: without them nobody knows how good this model is on new texts."]
    if "test" not in results[0]:
        return ["Add data.test_csv: validation has chosen the model, so its figures are too good."]
    found = results[0]["test"].get("intervals", {})
    limits = found.get(verdict.metric if verdict else next(iter(found), ""))
    if limits and limits[1] - limits[0] > WIDE_INTERVAL:
        return [f"Label more test texts: the 95 % interval is {limits[1] - limits[0]:.2f} wide."]
    losses = results[0].get("train", {}).get("loss"), results[0]["test"].get("loss")
    if losses[0] and losses[1] and losses[1] > OVERFIT * losses[0] and losses[1] > 0.1:
        return [
            f"The model knows its training texts by heart (loss {losses[0]:.3f}, on new texts {losses[1]:.3f}): "
            "label more texts."
        ]
    return []


def _on_labels(results: list[dict[str, Any]]) -> list[str]:
    """The label that has the most to gain from more texts."""
    split = next((s for s in ("test", "validation") if s in results[0]), None)
    counts = results[0].get("data", {}).get("train", {}).get("labels", {})
    if split is None or not counts:
        return []
    found = [(name, row["f1"]) for name, row in results[0][split]["per_class"].items() if row["support"] > 0]
    weak = sorted((pair for pair in found if pair[1] < WEAK_LABEL), key=lambda pair: counts.get(pair[0], 0))
    if not weak:
        return []
    named = ", ".join(f"{name} (F1 {f1:.2f}, {counts.get(name, 0):,} training texts)" for name, f1 in weak[:3])
    more = f" and {len(weak) - 3} more" if len(weak) > 3 else ""
    return [f"Label more texts of the weakest labels, rarest first: {named}{more}."]


def _on_seeds(verdict: RunVerdict | None, results: list[dict[str, Any]]) -> list[str]:
    """One seed says nothing about the chance of training."""
    if len(results) > 1 or verdict is None:
        return []
    return ["Train two more seeds, exp.seeds=[1,2,3]: one seed does not show how far the result depends on chance."]
