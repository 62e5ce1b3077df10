from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from llmcls.common.user_error import UserError
from llmcls.search.space import Space
from llmcls.search.study import best_first, counted, open_search, origin_of, running, taken_trial
from tests.helpers import ROOT

SPACE = Space("space.yaml", {"x": FloatDistribution(0.0, 1.0)})


def test_a_search_takes_as_many_trials_as_were_asked_for_and_ranks_them(tmp_path: Path) -> None:
    search = open_search(tmp_path, "tune", SPACE, True, 1)
    for value in (0.5, 0.9, 0.7):
        with taken_trial(search, 3) as trial:
            assert trial is not None
            assert 0 <= trial.params["x"] <= 1
            search.study.tell(trial, value)
    with taken_trial(search, 3) as trial:
        assert trial is None
    assert [trial.value for trial in best_first(search.study)] == [0.9, 0.7, 0.5]
    with taken_trial(open_search(tmp_path, "tune", SPACE, True, 1), 4) as trial:
        assert origin_of(trial) == 3


def test_lower_can_be_better(tmp_path: Path) -> None:
    search = open_search(tmp_path, "tune", SPACE, False, 1)
    for value in (0.5, 0.9):
        with taken_trial(search, 2) as trial:
            search.study.tell(trial, value)
    assert [trial.value for trial in best_first(search.study)] == [0.5, 0.9]


def test_two_processes_share_a_search_and_do_not_train_the_same_trial(tmp_path: Path) -> None:
    first, second = (open_search(tmp_path, "tune", SPACE, True, 1) for _ in range(2))
    with taken_trial(first, 2) as one, taken_trial(second, 2) as other:
        assert {origin_of(one), origin_of(other)} == {0, 1}
        assert one.params != other.params
        assert len(running(first.study)) == 2
        with taken_trial(second, 2) as none:
            assert none is None


def test_the_trial_of_a_dead_process_is_trained_again_with_its_values(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys; from optuna.distributions import FloatDistribution as F;"
        "from llmcls.search.space import Space; from llmcls.search.study import open_search, taken_trial;"
        "s = open_search(pathlib.Path(sys.argv[1]), 'tune', Space('space.yaml', {'x': F(0.0, 1.0)}), True, 1);"
        "t = taken_trial(s, 3).__enter__(); print(t.params['x'], flush=True); os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    search = open_search(tmp_path, "tune", SPACE, True, 1)
    assert [trial.state for trial in search.study.trials] == [TrialState.RUNNING]
    for value in (0.5, 0.6, 0.7):
        with taken_trial(search, 3) as trial:
            if value == 0.5:
                assert origin_of(trial) == 0
                assert trial.params["x"] == float(done.stdout)
            search.study.tell(trial, value)
    with taken_trial(search, 3) as trial:
        assert trial is None
    # The dead one is not counted beside the one that took it over.
    assert [trial.value for trial in counted(search.study)] == [0.5, 0.6, 0.7]
    assert not running(search.study)


@pytest.mark.parametrize(
    "space, higher, sentence",
    [
        (Space("s", {"y": FloatDistribution(0.0, 1.0)}), True, "in another space"),
        (Space("s", {"x": CategoricalDistribution(["1", "2"])}), True, "other kinds of values of x"),
        (SPACE, False, "for another metric"),
    ],
)
def test_another_search_under_the_same_name_is_refused(tmp_path: Path, space: Space, higher, sentence: str) -> None:
    search = open_search(tmp_path, "tune", SPACE, True, 1)
    with taken_trial(search, 1) as trial:
        search.study.tell(trial, 0.5)
    with pytest.raises(UserError, match=f"{sentence}.*choose another --name"):
        open_search(tmp_path, "tune", space, higher, 1)


def test_a_trial_below_the_median_of_the_others_ends_early(tmp_path: Path) -> None:
    search = open_search(tmp_path, "tune", SPACE, True, 1)
    for _ in range(5):
        with taken_trial(search, 7) as trial:
            for number in range(3):
                trial.report(0.8, number)
                assert not trial.should_prune()
            search.study.tell(trial, 0.8)
    for value, behind in ((0.9, False), (0.2, True)):
        with taken_trial(search, 7) as trial:
            trial.report(value, 0)
            assert not trial.should_prune(), "the first evaluation says little"
            trial.report(value, 1)
            assert trial.should_prune() == behind
            search.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
