from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from llmcls.reproduce import main
from tests.conftest import Experiment
from tests.helpers import fresh_accelerator, read_json, read_rows, refusal, write_csv

pytestmark = pytest.mark.slow


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def exit_code(*arguments: object) -> object:
    fresh_accelerator()
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


def test_a_run_comes_out_the_same_in_a_folder_beside_it(trained: Experiment, capsys) -> None:
    run = trained.runs[1]
    before = files(trained.folder)
    assert exit_code(run) == 0
    again = trained.folder / "run_1-again" / "run_0"
    after = files(trained.folder)
    assert {name: after[name] for name in before} == before
    assert all(name.startswith("run_1-again/") for name in after.keys() - before.keys())
    assert (again / "model/adapter_model.safetensors").read_bytes() == before["run_1/model/adapter_model.safetensors"]
    found = read_json(again.parent / "reproduction.json")
    assert (found["equal"], found["surroundings"], found["differences"]) == (True, [], [])
    assert found["compared"]["predictions_test"] == "61 rows"
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "nothing around the run has changed"
    assert "predictions_test: 61 rows, equal to the last bit" in said
    assert said[-1] == f"{run} and {again} are equal"
    # What was compared is kept: the next repetition has a place of its own.
    assert exit_code(run, "--check-only") == 0
    assert (trained.folder / "run_1-again-2" / "reproduction.json").is_file()


def test_what_changed_around_a_run_is_said_without_a_training(
    trained: Experiment, products: Path, tiny_llama: Path, tmp_path: Path, capsys
) -> None:
    run, model = trained.runs[0], tmp_path / "other" / tiny_llama.name
    shutil.copytree(tiny_llama, model)
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    rows = read_rows(products / "train.csv")
    values = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    values["data"]["train_csv"] = str(write_csv(tmp_path / "train.csv", rows[:-1]))
    values["model"]["model_name"] = str(model)
    (run / "recipe.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    assert exit_code(run, "--check-only") == 1
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said] == ["data train", "base model model.safetensors"]
    assert all(" bytes (" in line and " then, " in line and line.endswith(" now") for line in said)
    assert read_json(trained.folder / "run_0-again" / "reproduction.json")["surroundings"] == said
    assert not (trained.folder / "run_0-again" / "run_0").exists()


def test_a_folder_that_holds_no_finished_run_is_refused(trained: Experiment, tmp_path: Path, capsys) -> None:
    assert "is not a finished run" in refusal(capsys, "reproduce", tmp_path)
    weights = trained.runs[0] / "model" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "is damaged: model/adapter_model.safetensors" in refusal(capsys, "reproduce", trained.runs[0])
    assert not (trained.folder / "run_0-again").exists()
