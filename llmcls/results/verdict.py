"""The verdict: one sentence on what fine-tuning brought over each baseline, and whether that is more than noise.

summary.md and the console end with it, and report.html begins with it. `llmcls.results.next_steps` says what to do
next.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from llmcls.evaluation.bootstrap import interval_names
from llmcls.recipe.defaults import selection_metric
from llmcls.recipe.load import load_recipe
from llmcls.recipe.metric_names import in_words
from llmcls.recipe.schema import Recipe
from llmcls.results.comparison import judge
from llmcls.results.predictions import read_decisions
from llmcls.results.run_folder import PREDICTED_SPLITS, RunFolder
from llmcls.results.saved_labels import read_label_space

RESAMPLES = 1000
# Baselines in words, the ones that are hardest to beat first.
IN_WORDS = {
    "probe": "the frozen model with a linear probe", "tfidf_linear": "TF-IDF with a linear model",
    "tfidf_centroid": "the nearest centroid of TF-IDF features", "majority": "the most frequent labels",
}  # fmt: skip


@dataclass(frozen=True)
class Gain:
    """Fine-tuning compared with a baseline.

    Attributes
    ----------
    baseline : str
        Its name in baselines.json.
    value : float
        The metric of the baseline.
    low, high : float
        Bounds of the 95 % interval of fine-tuning minus baseline.
    word : str
        "better", "worse" or "noise": what fine-tuning is.
    """

    baseline: str
    value: float
    low: float
    high: float
    word: str


@dataclass(frozen=True)
class RunVerdict:
    """What fine-tuning brought over the baselines.

    Attributes
    ----------
    split, metric : str
    value : float
        Mean over the runs.
    seeds : int
        Number of runs.
    gains : list of Gain
    """

    split: str
    metric: str
    value: float
    seeds: int
    gains: list[Gain]

    def as_json(self) -> dict[str, Any]:
        """The verdict for programs, with its sentence."""
        return {"sentence": self.sentence(), **asdict(self)}

    def sentence(self) -> str:
        """The verdict in words."""
        seeds = f"the mean of {self.seeds} seeds" if self.seeds > 1 else "one seed"
        parts: list[str] = []
        for gain in self.gains:
            difference = self.value - gain.value
            interval = f"{_signed(gain.low)} to {_signed(gain.high)}"
            if not parts:
                interval = f"95 % interval {interval}"
            than = f"{'more' if difference >= 0 else 'less'} than {IN_WORDS[gain.baseline]}"
            noise = "; within noise" if gain.word == "noise" else ""
            parts.append(f"{abs(difference):.3f} {than} ({interval}{noise})")
        listed = ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1]
        reached = f"Fine-tuning reaches {in_words(self.metric)} {self.value:.3f} on {self.split} ({seeds}): {listed}."
        return f"{reached} {self._conclusion()}"

    def _conclusion(self) -> str:
        """What follows for someone who has to choose."""
        better = [IN_WORDS[gain.baseline] for gain in self.gains if gain.word == "worse"]
        equal = [IN_WORDS[gain.baseline] for gain in self.gains if gain.word == "noise"]
        if better:
            return f"Here {better[0]} is better, and costs less."
        if equal:
            return f"Here {equal[0]} is as good, as far as this data can tell, and costs less."
        return "That is more than noise." if len(self.gains) == 1 else "All of this is more than noise."


def verdict_on(runs: list[RunFolder]) -> RunVerdict | None:
    """Compare finished runs of one experiment with its baselines.

    Parameters
    ----------
    runs : list of RunFolder
        At least one, evaluated; a metrics.json need not be there yet.

    Returns
    -------
    RunVerdict or None
        On test if the runs predicted it, else on validation. None if the recipe wants no baselines, or none has been
        measured on the rows that were predicted.
    """
    recipe = load_recipe(runs[0].recipe)
    splits = [s for s in PREDICTED_SPLITS if all(run.predictions(s).is_file() for run in runs)]
    if recipe.exp.baselines is False or not splits:
        return None
    split, store = splits[-1], runs[0].experiment.baselines
    labels = read_label_space(runs[0].labels)
    found = [read_decisions(run.predictions(split), labels) for run in runs]
    true, tuned = found[0][0], [predicted for _, predicted in found]
    metric = judged_metric(recipe)
    gains, value = [], 0.0
    decisions = store.decisions_on(split)
    for name in IN_WORDS:
        if name in decisions and decisions[name].shape == true.shape:
            each = {v.metric: v for v in judge(true, [decisions[name]], tuned, RESAMPLES, labels.binary)}[metric]
            word = each.word.removeprefix("B is ")
            value = each.second
            gains.append(Gain(name, each.first, each.low, each.high, word))
    return RunVerdict(split, metric, value, len(runs), gains) if gains else None


def _signed(value: float) -> str:
    """Three decimals with a sign, and no minus before zero."""
    return f"{round(value, 3) + 0.0:+.3f}"


def judged_metric(recipe: Recipe) -> str:
    """The metric of the verdict: the one that selects the best model, where intervals of it are known."""
    wanted = selection_metric(recipe)
    if recipe.model.problem_type != "multi_label_classification" and wanted in ("f1_micro", "accuracy"):
        # They are the same for classes.
        return "accuracy"
    known = interval_names(recipe.model.problem_type == "binary_classification")
    return wanted if wanted in known else known[0]
