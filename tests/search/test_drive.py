"""A whole search over real trainings, in this process instead of a new one for each."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from llmcls.common.user_error import UserError
from llmcls.recipe.load import load_recipe
from llmcls.search import drive
from llmcls.search.trial import Outcome
from llmcls.tune import main
from tests.helpers import read_json, refusal, train

pytestmark = pytest.mark.slow


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The overrides of each training; trained here, and resumed if there already."""
    started: list[list[str]] = []

    def train_here(command: list[str], run, metric: str, is_behind=None) -> Outcome:
        recipe, *overrides = command[command.index("llmcls.train") + 1 :]
        started.append(overrides)
        train(recipe, *overrides)
        return Outcome(value=read_json(run.metrics)["validation"][metric])

    monkeypatch.setattr("llmcls.search.drive.train_trial", train_here)
    return started


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "space.yaml"
    path.write_text("train.learning_rate: {low: 1.0e-3, high: 2.0e-2, log: true}\nmodel.lora_r: [2, 4]\n")
    return path


def test_the_best_of_the_finalists_over_all_seeds_is_written_and_read_on_test_once(
    write_recipe, space, trainings, tmp_path, capsys
) -> None:
    # The recipe hardly learns, so that a trial is better.
    recipe = write_recipe(train__learning_rate=1e-7, train__num_train_epochs=1)
    arguments = [str(recipe), "--space", str(space), "--trials", "3", "--finalists", "1", "--seeds", "1,2"]
    main(arguments)
    out = capsys.readouterr().out
    folder = tmp_path / "outputs" / "tiny-llama" / "products"
    found = read_json(folder / "tune.json")
    ranked = sorted(found["trials"], key=lambda trial: -trial["value"])
    assert [trial["state"] for trial in found["trials"]] == ["complete"] * 3
    # Three trials, then the recipe and the best trial with both seeds.
    assert len(trainings) == 5
    # Trackers show all of them together.
    assert {overrides[0] for overrides in trainings} == {'train.tracking_group="tiny-llama/products/tune"'}
    assert set(found["candidates"]) == {"the recipe", f"trial {ranked[0]['trial']}"}
    assert found["best"] == f"trial {ranked[0]['trial']}"
    assert found["candidates"][found["best"]] > found["candidates"]["the recipe"]
    assert found["sentence"] in out
    assert "on test" in found["sentence"].lower()
    best = load_recipe(folder / "tune-best.yaml")
    assert best.train.learning_rate == ranked[0]["params"]["train.learning_rate"]
    assert best.exp.seeds == [1]
    # What cannot be a finalist any more keeps its numbers, not its weights.
    for trial in ranked[1:]:
        run = folder / trial["run_name"] / "run_0"
        assert (run / "metrics.json").exists()
        assert not (run / "model").exists()
    assert (folder / ranked[0]["run_name"] / "run_1" / "model").exists()
    # The same command again has nothing to train.
    main(arguments)
    assert len(trainings) == 5


def test_a_process_that_arrives_while_another_ends_the_search_leaves_it_to_that_one(
    write_recipe, space, trainings, tmp_path, capsys, monkeypatch
) -> None:
    recipe = write_recipe(train__num_train_epochs=1)
    arguments = [str(recipe), "--space", str(space), "--trials", "1", "--finalists", "1", "--seeds", "1"]
    folder, real = tmp_path / "outputs" / "tiny-llama" / "products", drive.candidates_of

    def meanwhile(*given: object) -> object:
        # This process has begun to end the search; another command comes to its end, too.
        monkeypatch.setattr(drive, "candidates_of", real)
        main(arguments)
        assert "another process trains the finalists and ends the search" in capsys.readouterr().out
        assert not (folder / "tune.json").exists()
        return real(*given)

    monkeypatch.setattr(drive, "candidates_of", meanwhile)
    main(arguments)
    assert "best recipe" in capsys.readouterr().out
    assert len(read_json(folder / "tune.json")["trials"]) == 1


def test_trials_that_only_fail_end_the_search_with_their_reason(write_recipe, space, monkeypatch) -> None:
    failure = Outcome(failure="error: out of memory; lower batch_size")
    monkeypatch.setattr("llmcls.search.drive.train_trial", lambda *_, **__: failure)
    with pytest.raises(UserError, match="3 trials failed and none succeeded; the last: error: out of memory"):
        main([str(write_recipe()), "--space", str(space)])


@pytest.mark.parametrize(
    "change, arguments, sentence",
    [
        ({"data__val_csv": None}, [], "a search needs validation rows; set data.val_csv"),
        ({}, ["--trials", "0"], "must be at least 1"),
        ({}, ["--seeds", "1,1"], "give different whole numbers"),
        ({}, ["--profile", "dpp"], "no profile 'dpp'"),
    ],
)
def test_a_mistake_is_one_sentence(write_recipe, space, capsys, change, arguments: list[str], sentence: str) -> None:
    assert sentence in refusal(capsys, "tune", write_recipe(**change), "--space", space, *arguments)


def test_the_space_of_the_documentation_is_accepted(write_recipe, tmp_path: Path) -> None:
    from llmcls.search import space as module

    text = "\n".join(line.strip() for line in module.__doc__.splitlines() if line.startswith("    "))
    assert set(yaml.safe_load(text)) == {"train.learning_rate", "train.num_train_epochs", "model.lora_r", "loss"}
    path = tmp_path / "documented.yaml"
    path.write_text(text)
    assert len(module.load_space(path, str(write_recipe()), []).distributions) == 4
