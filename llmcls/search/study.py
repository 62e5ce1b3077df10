"""The study of a search: a journal file, which many processes on many machines can share.

A process takes a trial, trains it, and tells the result. It holds a lock for each trial that it trains. So a process
that starts later knows which trials are being trained, and takes over those whose process is dead: their runs resume.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from optuna.distributions import check_distribution_compatibility
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from llmcls.common.user_error import UserError
from llmcls.results.lock import locked
from llmcls.search.space import Space

SECONDS_BETWEEN_CHECKS = 600.0
# In a trial that takes over an earlier one: the number of the first of them, which names its run.
ORIGIN = "origin"


@dataclass(frozen=True)
class Search:
    """A study and its files.

    Attributes
    ----------
    folder : Path
        Where the files are: that of the recipe's results, without a run name.
    name : str
        First part of the names of its files and runs.
    space : Space
    study : optuna.Study
    seed : int
        Of the sampler.
    seen_alive : dict
        When the process of a trial was last seen alive, in seconds. On another machine, looking takes a while.
    """

    folder: Path
    name: str
    space: Space
    study: optuna.Study
    seed: int
    seen_alive: dict[int, float] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """What trackers show the trials together as: model, data set and name of the search."""
        return "/".join([*self.folder.parts[-2:], self.name])

    def run_name(self, number: int) -> str:
        """The run name of the trial with this origin."""
        return f"{self.name}-{number:03d}"

    def lock(self, what: str) -> Path:
        """The lock of a trial, or of the finalists."""
        return self.folder / f"{self.name}.{what}.lock"


def open_search(folder: Path, name: str, space: Space, higher_is_better: bool, seed: int) -> Search:
    """Open the study of a search, or make it.

    Parameters
    ----------
    folder, name, space
        See `Search`.
    higher_is_better : bool
    seed : int
        Of the sampler. What a trial tries depends on it, on the number of the trial and on what was found before.

    Raises
    ------
    UserError
        If the study there has another direction, or a trial with values that the space does not have.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    file = str(folder / f"{name}.journal")
    # Symbolic links, the other way to lock, need special rights on Windows.
    storage = JournalStorage(JournalFileBackend(file, lock_obj=JournalFileOpenLock(file)))
    direction = StudyDirection.MAXIMIZE if higher_is_better else StudyDirection.MINIMIZE
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        direction=direction,
        # An evaluation below the median of the earlier trials at the same evaluation ends a trial. Five trials are
        # trained to their end first, and the first evaluation of a trial says little.
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1),
        load_if_exists=True,
    )
    if study.direction != direction:
        raise UserError(f"{file} is a search for another metric; choose another --name")
    for trial in study.trials:
        other = sorted(set(trial.params) ^ set(space.distributions)) if trial.params else []
        if other:
            raise UserError(f"{file} is a search in another space: {other[0]} differs; choose another --name")
        for key, tried in trial.distributions.items():
            try:
                check_distribution_compatibility(tried, space.distributions[key])
            except ValueError:
                raise UserError(
                    f"{file} tried other kinds of values of {key} than {space.source} has; choose another --name"
                ) from None
    return Search(folder, name, space, study, seed)


def origin_of(trial: FrozenTrial | optuna.Trial) -> int:
    """The number that names the run of a trial."""
    return int(trial.user_attrs.get(ORIGIN, trial.number))


def counted(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that a search has: of those that took over each other, the last."""
    last: dict[int, FrozenTrial] = {}
    for trial in study.trials:
        last[origin_of(trial)] = trial
    return list(last.values())


@contextmanager
def taken_trial(search: Search, trials: int) -> Iterator[optuna.Trial | None]:
    """The next trial of a search, held by this process within the context; None if there is none to begin.

    Parameters
    ----------
    search : Search
    trials : int
        How many trials the search shall have.
    """
    with _turn(search):
        _take_over_the_dead(search)
        waiting = any(trial.state == TrialState.WAITING for trial in search.study.trials)
        if not waiting and len(counted(search.study)) >= trials:
            yield None
            return
        # Seeded for each trial: processes that share a search would otherwise begin with the same values.
        search.study.sampler = optuna.samplers.TPESampler(seed=1000 * search.seed + len(search.study.trials))
        trial = search.study.ask(fixed_distributions=search.space.distributions)
        held = locked(search.lock(f"trial-{origin_of(trial):03d}"), f"trial {origin_of(trial)}")
        held.__enter__()
    try:
        yield trial
    finally:
        held.__exit__(None, None, None)


def running(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that are being trained."""
    return [trial for trial in counted(study) if trial.state in (TrialState.RUNNING, TrialState.WAITING)]


def best_first(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that were trained to their end, the best first."""
    complete = [trial for trial in counted(study) if trial.state == TrialState.COMPLETE]
    sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
    return sorted(complete, key=lambda trial: (sign * _value(trial), trial.number))


def _value(trial: FrozenTrial) -> float:
    assert trial.value is not None
    return trial.value


@contextmanager
def _turn(search: Search) -> Iterator[None]:
    """Let one process at a time begin a trial: two must not take over the same one, or begin one too many."""
    storage_lock = JournalFileOpenLock(str(search.lock("turn")))
    storage_lock.acquire()
    try:
        yield
    finally:
        with contextlib.suppress(RuntimeError):
            storage_lock.release()


def _take_over_the_dead(search: Search) -> None:
    """Let trials whose process is dead wait to be trained again, with the same values and run."""
    for trial in search.study.get_trials(states=(TrialState.RUNNING,)):
        if time.monotonic() - search.seen_alive.get(trial.number, -math.inf) < SECONDS_BETWEEN_CHECKS:
            continue
        try:
            with locked(search.lock(f"trial-{origin_of(trial):03d}"), f"trial {origin_of(trial)}"):
                # In this order, so that a kill in between loses no trial.
                if trial.number not in {other.user_attrs.get("instead_of") for other in search.study.trials}:
                    notes = {ORIGIN: origin_of(trial), "instead_of": trial.number}
                    search.study.enqueue_trial(trial.params, user_attrs=notes)
                search.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        except UserError:
            search.seen_alive[trial.number] = time.monotonic()
