"""Driving a search: trials one after the other, until it has enough, and then its end."""

from __future__ import annotations

import functools
import json
import shutil
from contextlib import ExitStack
from dataclasses import dataclass

import optuna
from optuna.trial import TrialState

from llmcls.common.user_error import UserError
from llmcls.recipe.load import load_recipe
from llmcls.recipe.schema import Recipe
from llmcls.results.lock import InUseError, locked
from llmcls.results.run_folder import ExperimentFolder
from llmcls.search.finalists import Candidate, candidates_of, result_of, runs_of, write_result
from llmcls.search.study import Search, best_first, counted, origin_of, running, taken_trial
from llmcls.search.trial import Outcome, train_trial

# With so many failures and no success, the recipe or the machine is the cause, not the values.
MOST_FAILURES = 3


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes
    ----------
    recipe : str
    overrides : list of str
    command : list of str
        Starts a training, without recipe and overrides.
    metric : str
    trials, finalists : int
    seeds : list of int
        The trials have the first of them.
    """

    recipe: str
    overrides: list[str]
    command: list[str]
    metric: str
    trials: int
    finalists: int
    seeds: list[int]


def train_next(search: Search, request: Request) -> bool:
    """Train the next trial; False if there is none.

    Raises
    ------
    UserError
        If trials only fail.
    """
    with taken_trial(search, request.trials) as trial:
        if trial is None:
            return False
        number = origin_of(trial)
        changes = search.space.overrides(trial.params)
        print(f"trial {number}: {' '.join(changes)}", flush=True)
        identity = [f"exp.run_name={search.run_name(number)}", f"exp.seeds=[{request.seeds[0]}]"]
        given = [*request.overrides, *changes, *identity]
        run = ExperimentFolder.of(load_recipe(request.recipe, given)).run(0)
        outcome = train_trial(
            _command(search, request, given), run, request.metric, functools.partial(_is_behind, trial)
        )
        _tell(search, trial, outcome)
        print(f"trial {number}: {_in_words(outcome)}", flush=True)
    _drop_weights(search, request)
    failed = [t for t in counted(search.study) if t.state == TrialState.FAIL]
    if len(failed) >= MOST_FAILURES and not best_first(search.study):
        raise UserError(f"{len(failed)} trials failed and none succeeded; the last: {outcome.failure}"[:280])
    return True


def _command(search: Search, request: Request, overrides: list[str]) -> list[str]:
    """Starts a training of the search; trackers show all of them together, unless the overrides say otherwise."""
    group = f"train.tracking_group={json.dumps(search.group)}"
    return [*request.command, request.recipe, group, *overrides, "exp.baselines=false"]


def _is_behind(trial: optuna.Trial, number: int, value: float) -> bool:
    """Report an evaluation of a trial; whether it should end."""
    trial.report(value, number)
    return trial.should_prune()


def _tell(search: Search, trial: optuna.Trial, outcome: Outcome) -> None:
    """Write the outcome of a trial to the study."""
    if outcome.failure is not None:
        trial.set_user_attr("failure", outcome.failure[:200])
        search.study.tell(trial, state=TrialState.FAIL)
    elif outcome.value is None:
        search.study.tell(trial, state=TrialState.PRUNED)
    else:
        search.study.tell(trial, outcome.value)


def _in_words(outcome: Outcome) -> str:
    if outcome.failure is not None:
        return f"failed: {outcome.failure}"
    return "ended early, behind the others" if outcome.value is None else f"{outcome.value:.4f}"


def _drop_weights(search: Search, request: Request) -> None:
    """Remove checkpoints and models of trials that will not be finalists; their numbers stay."""
    kept = {origin_of(trial) for trial in best_first(search.study)[: request.finalists]}
    for trial in counted(search.study):
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and origin_of(trial) not in kept:
            run = ExperimentFolder(search.folder / search.run_name(origin_of(trial))).run(0)
            for folder in (run.last_checkpoint.parent, run.model):
                shutil.rmtree(folder, ignore_errors=True)


def finish_search(search: Search, request: Request) -> None:
    """Train the finalists and write the result, if this process is the last one and no other is at it.

    Raises
    ------
    UserError
        If a finalist fails.
    """
    others = running(search.study)
    if others:
        print(f"{len(others)} trial(s) are being trained by other processes; the last of these ends the search")
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(search.lock("finalists"), f"the end of the search {search.name}"))
        except InUseError:
            print("another process trains the finalists and ends the search")
            return
        _train_finalists(search, request)


def _train_finalists(search: Search, request: Request) -> None:
    """Train what is left of the finalists, compare them, and write the result."""
    candidates = candidates_of(search, request.finalists, request.seeds)
    load = functools.partial(_recipe_of, request)
    for candidate in candidates:
        recipe = load(candidate)
        if all(run.finished for run in runs_of(recipe)):
            continue
        print(f"{candidate.name}, seeds {', '.join(map(str, request.seeds))}", flush=True)
        command = _command(search, request, [*request.overrides, *candidate.overrides])
        outcome = train_trial(command, runs_of(recipe)[-1], request.metric)
        if outcome.failure:
            raise UserError(f"{candidate.name} failed: {outcome.failure}"[:280])
    result = result_of(request.metric, candidates, load)
    print(write_result(search, result, request.recipe, request.overrides))
    print(f"best recipe: {search.folder / search.name}-best.yaml")


def _recipe_of(request: Request, candidate: Candidate) -> Recipe:
    return load_recipe(request.recipe, [*request.overrides, *candidate.overrides])
