"""The end of a search: the best trials and the recipe itself are trained with all seeds, and the best is written.

The best on validation is chosen among the means over the seeds, so a lucky seed of one trial does not decide. The test
split is read once, for the recipe that was chosen.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llmcls.common.files import read_json, write_json, write_text
from llmcls.recipe.load import load_recipe, recipe_to_yaml
from llmcls.recipe.metric_names import in_words, metric_direction
from llmcls.recipe.schema import Recipe
from llmcls.results.comparison import Verdict, compare
from llmcls.results.run_folder import ExperimentFolder, RunFolder
from llmcls.search.picture import write_search_picture
from llmcls.search.study import Search, best_first, counted, origin_of

RESAMPLES = 2000


@dataclass(frozen=True)
class Candidate:
    """A recipe that may be the best.

    Attributes
    ----------
    name : str
        "the recipe", or "trial N".
    overrides : list of str
        What it changes in the recipe, with run name and seeds.
    changes : list of str
        What it changes, without these two.
    """

    name: str
    overrides: list[str]
    changes: list[str]


@dataclass(frozen=True)
class Result:
    """What a search found.

    Attributes
    ----------
    metric : str
    candidates : dict
        Mean over the seeds on validation, by name of the candidate; the recipe itself is "the recipe".
    best : str
        The best of them.
    changes : list of str
        What it changes in the recipe.
    test : Verdict, optional
        On the test split, the recipe as A and the best as B; None without a test file, or if the recipe is the best.
    sentence : str
        The result in words.
    """

    metric: str
    candidates: dict[str, float]
    best: str
    changes: list[str]
    test: Verdict | None
    sentence: str


def candidates_of(search: Search, finalists: int, seeds: list[int]) -> list[Candidate]:
    """The recipe itself and the best trials of a search, with all seeds."""
    found = [Candidate("the recipe", _identity(f"{search.name}-recipe", seeds), [])]
    for trial in best_first(search.study)[:finalists]:
        changes = search.space.overrides(trial.params)
        number = origin_of(trial)
        identity = _identity(search.run_name(number), seeds)
        found.append(Candidate(f"trial {number}", [*changes, *identity], changes))
    return found


def _identity(run_name: str, seeds: list[int]) -> list[str]:
    return [f"exp.run_name={run_name}", f"exp.seeds={seeds}"]


def runs_of(recipe: Recipe) -> list[RunFolder]:
    """The runs of all seeds of a recipe."""
    folder = ExperimentFolder.of(recipe)
    return [folder.run(number) for number in range(len(recipe.exp.seeds))]


def result_of(metric: str, candidates: list[Candidate], load: Callable[[Candidate], Recipe]) -> Result:
    """Choose the best candidate on validation, and compare it with the recipe on the test split.

    Parameters
    ----------
    metric : str
    candidates : list of Candidate
        All trained; the recipe itself is the first.
    load : callable
        Loads the recipe of a candidate.
    """
    runs = {c.name: runs_of(load(c)) for c in candidates}
    means = {name: _mean(of_one, "validation", metric) for name, of_one in runs.items()}
    best = max(candidates, key=lambda c: metric_direction(metric) * means[c.name])
    plain = candidates[0]
    words = in_words(metric)
    if best is plain:
        text = f"No trial is better than the recipe: {words} {means[plain.name]:.4f} on validation."
        return Result(metric, means, best.name, [], None, text)
    text = (
        f"{best.name.capitalize()} is the best: {words} {means[best.name]:.4f} on validation, "
        f"the recipe {means[plain.name]:.4f}."
    )
    verdict = None
    if all("test" in run.predicted_splits() for of_one in (runs[plain.name], runs[best.name]) for run in of_one):
        verdicts = compare(runs[plain.name], runs[best.name], "test", RESAMPLES, same=False).verdicts
        verdict = next((v for v in verdicts if v.metric == metric), verdicts[0])
        text += f" {_on_test(verdict)}"
    return Result(metric, means, best.name, best.changes, verdict, text)


def _on_test(verdict: Verdict) -> str:
    """What became of the gain on rows that chose nothing."""
    change = (
        f"{verdict.second - verdict.first:+.4f} {in_words(verdict.metric)} "
        f"[{verdict.low:+.4f}, {verdict.high:+.4f}], p {verdict.p:.3f}"
    )
    return {
        "B is better": f"The gain holds on test: {change}.",
        "B is worse": f"On test it is worse than the recipe: {change}; keep the recipe.",
    }.get(verdict.word, f"On test the difference is within noise: {change}.")


def _mean(runs: list[RunFolder], split: str, metric: str) -> float:
    return statistics.fmean(float(read_json(run.metrics)[split][metric]) for run in runs)


def write_result(search: Search, result: Result, recipe: str, overrides: list[str]) -> str:
    """Write ``<name>.md``, ``<name>.json``, the picture, and the best recipe as ``<name>-best.yaml``.

    Parameters
    ----------
    search : Search
    result : Result
    recipe : str
        The recipe file that the search started from.
    overrides : list of str
        Its overrides.

    Returns
    -------
    str
        The content of the .md file.
    """
    best = load_recipe(recipe, [*overrides, *result.changes])
    best = replace(best, exp=replace(best.exp, run_name=f"{search.name}-best"))
    write_text(_file(search, "-best.yaml"), f"# Found by llmcls.tune. {result.sentence}\n{recipe_to_yaml(best)}")
    lines = [f"# {search.name}: {in_words(result.metric)}", "", result.sentence, ""]
    lines += ["| candidate | validation, mean over the seeds | changes |", "|---|---|---|"]
    ordered = sorted(result.candidates.items(), key=lambda item: -metric_direction(result.metric) * item[1])
    changes = {f"trial {origin_of(t)}": search.space.overrides(t.params) for t in counted(search.study)}
    lines += [f"| {name} | {value:.4f} | {' '.join(changes.get(name, []))} |" for name, value in ordered]
    lines += ["", *trial_table(search)]
    text = "\n".join(lines) + "\n"
    write_text(_file(search, ".md"), text)
    write_search_picture(search, result.metric)
    write_json(_file(search, ".json"), asdict(result) | {"trials": [_trial(search, t) for t in counted(search.study)]})
    return text


def trial_table(search: Search) -> list[str]:
    """All trials of a search as a table, the best first."""
    names = list(search.space.distributions)
    lines = [
        "| trial | " + " | ".join(name.rpartition(".")[2] for name in names) + " | validation | |",
        "|---|" + "---|" * (len(names) + 2),
    ]
    ranked = best_first(search.study)
    rest = [trial for trial in counted(search.study) if trial not in ranked]
    for trial in [*ranked, *rest]:
        shown = [_cell(trial.params.get(name, "")) for name in names]
        value = "" if trial.value is None else f"{trial.value:.4f}"
        state = {"COMPLETE": "", "PRUNED": "ended early", "FAIL": trial.user_attrs.get("failure", "failed")}
        note = state.get(trial.state.name, "not finished")
        lines.append(f"| {origin_of(trial)} | {' | '.join(shown)} | {value} | {note} |")
    return lines


def _trial(search: Search, trial: Any) -> dict[str, Any]:
    return {
        "trial": origin_of(trial),
        "state": trial.state.name.lower(),
        "value": trial.value,
        "params": trial.params,
        "run_name": search.run_name(origin_of(trial)),
    }


def _cell(value: Any) -> str:
    return (f"{value:.3g}" if isinstance(value, float) else str(value)).replace("|", "\\|")


def _file(search: Search, ending: str) -> Path:
    return search.folder / f"{search.name}{ending}"
