from __future__ import annotations

import pytest

from llmcls.common.user_error import UserError
from llmcls.recipe.load import load_recipe
from llmcls.sweep import main


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    main([str(a) for a in arguments])
    return capsys.readouterr().out


def test_tasks_are_counted_and_printed_one_value_a_line(write_grid, capsys) -> None:
    grid = write_grid()
    assert printed(capsys, "count", grid) == "8\n"
    folders = set()
    for index in range(8):
        recipe, profile, *overrides = printed(capsys, "task", grid, index).splitlines()
        assert profile == "accel_configs/cpu.yaml"
        loaded = load_recipe(recipe, overrides)
        folders.add((loaded.exp.run_name, loaded.train.learning_rate, *loaded.exp.seeds))
    assert len(folders) == 8


@pytest.mark.parametrize("index", ["8", "-1", None])
def test_a_task_that_is_not_there_is_refused(write_grid, index: str | None) -> None:
    arguments = ["task", str(write_grid())] + ([] if index is None else [index])
    with pytest.raises(UserError, match="its tasks are 0 to 7"):
        main(arguments[:2] + (["--", index] if index else []))


def test_options_of_sbatch_are_printed_with_the_limit(write_grid, capsys) -> None:
    grid = write_grid(sbatch=["--time=10", "--gres=gpu:1"], at_once=3)
    assert printed(capsys, "sbatch", grid) == "--time=10\n--gres=gpu:1\n--array=0-7%3\n"
    assert printed(capsys, "sbatch", write_grid()) == ""


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"grid": {"train.learning_rat": [1]}}, "train.learning_rat"),
        ({"overrides": ["metric_for_best_model=f1_mikro"]}, "f1_mikro"),
    ],
)
def test_an_error_in_any_task_stops_the_sweep_before_it_is_submitted(write_grid, changes, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        main(["count", str(write_grid(**changes))])


def test_the_summary_names_what_is_not_finished(write_grid, capsys) -> None:
    out = printed(capsys, "summary", write_grid())
    assert out.count("seed 1, seed 2") == 4
    assert "| 0.0002 | ['all-linear'] |" in out
