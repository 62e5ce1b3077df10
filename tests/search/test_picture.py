from __future__ import annotations

from pathlib import Path

from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from llmcls.search.picture import write_search_picture
from llmcls.search.space import Space
from llmcls.search.study import open_search, taken_trial


def test_each_key_has_a_diagram_with_a_point_for_each_trial(tmp_path: Path) -> None:
    rates = FloatDistribution(1e-4, 1e-2, log=True)
    space = Space("s", {"model.lora_r": CategoricalDistribution(["4", "8"]), "train.learning_rate": rates})
    search = open_search(tmp_path, "tune", space, True, 1)
    write_search_picture(search, "f1_micro")
    assert not list(tmp_path.glob("*.svg")), "nothing has been tried"
    for value, state in ((0.3, TrialState.COMPLETE), (0.9, TrialState.COMPLETE), (0.2, TrialState.PRUNED)):
        with taken_trial(search, 9) as trial:
            trial.report(value, 1)
            search.study.tell(trial, value if state == TrialState.COMPLETE else None, state=state)
    write_search_picture(search, "f1_micro")
    drawn = (tmp_path / "tune.svg").read_text(encoding="utf-8")
    for words in ("model.lora_r", "train.learning_rate", "micro-F1 on validation, by trial"):
        assert f"<!-- {words} -->" in drawn
    assert drawn.count("#f97316") >= 2, "the best trial is orange in both diagrams"
    assert (tmp_path / "tune.png").stat().st_size > 1000
