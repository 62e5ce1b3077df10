from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from llmcls.common.user_error import UserError
from llmcls.prediction.resumable_predictions import lock_of
from llmcls.results.lock import locked
from tests.conftest import Experiment
from tests.helpers import (
    ROOT,
    assert_same_metrics,
    assert_same_predictions,
    needs_real_data,
    predict,
    read_lines,
    read_rows,
    refusal,
    train,
    write_csv,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "changes",
    [{}, {"model__use_4bit": True, "model__torch_dtype": "bfloat16"}, {"model__lora_r": 0}],
    ids=["lora", "4-bit", "full"],
)
def test_prediction_reproduces_the_runs_test_metrics_with_and_without_the_recipe(
    write_recipe, products: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    recipe = write_recipe(train__num_train_epochs=1, **changes)
    run = train(recipe) / "run_0"
    expected = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["test"]
    for i, source in enumerate((["--run", run], ["--recipe", recipe])):
        output = tmp_path / f"out{i}" / "predictions.jsonl"
        predict(*source, "--input", products / "test.csv", "--output", output)
        assert_same_predictions(output, run / "predictions_test.jsonl")
        assert_same_metrics(json.loads((output.parent / "predictions.metrics.json").read_text()), expected)
        assert sorted(p.name for p in output.parent.iterdir()) == ["predictions.jsonl", "predictions.metrics.json"]


def test_the_recipes_best_run_on_validation_is_taken(write_recipe, products: Path, tmp_path: Path) -> None:
    recipe = write_recipe(train__num_train_epochs=1, exp__seeds=[1, 2, 3], train__metric_for_best_model="loss")
    root = train(recipe)
    losses = [json.loads((root / f"run_{i}" / "metrics.json").read_text())["validation"]["loss"] for i in range(3)]
    predict("--recipe", recipe, "--input", products / "test.csv", "--output", tmp_path / "p.jsonl")
    best = root / f"run_{losses.index(min(losses))}" / "predictions_test.jsonl"
    assert_same_predictions(tmp_path / "p.jsonl", best)


def test_the_run_folder_can_be_moved_and_needs_only_the_base_model(trained, products, tmp_path) -> None:
    moved = tmp_path / "elsewhere" / "my run"
    moved.parent.mkdir()
    trained.runs[0].rename(moved)
    trained.recipe.unlink()
    predict("--run", moved, "--input", products / "test.csv", "--output", tmp_path / "p.jsonl")
    assert_same_predictions(tmp_path / "p.jsonl", moved / "predictions_test.jsonl")


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("")
    with pytest.raises(UserError, match="was started but not finished"):
        predict("--run", tmp_path, "--input", "x.csv", "--output", "y")


def test_an_output_that_another_prediction_writes_is_left_alone(trained_once, products, tmp_path, capsys) -> None:
    output = tmp_path / "p.jsonl"
    arguments = ["--input", products / "test.csv", "--output", output]
    with locked(lock_of(output), str(output)):
        for runs in (trained_once.runs[:1], trained_once.runs):
            found = refusal(capsys, "predict", "--run", *runs, *arguments)
            assert f"{output} is in use by process {os.getpid()} on " in found
        assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl.lock"]


class Input:
    """Standard input with some bytes in it."""

    def __init__(self, content: str) -> None:
        self.buffer = io.BytesIO(content.encode())


def test_one_text_and_the_lines_of_standard_input_are_printed(
    trained_once, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained_once.runs[0]
    predict("--run", run, "--text", "a novel about a garden")
    one = json.loads(capsys.readouterr().out)
    assert one["id"] == "0"
    assert len(one["probabilities"]) == 10
    monkeypatch.setattr(sys, "stdin", Input("a novel about a garden\nGröße\n"))
    predict("--run", run, "--input", "-")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["id"] for line in lines] == ["0", "1"]
    assert lines[0]["probabilities"] == pytest.approx(one["probabilities"], abs=1e-6)
    row = json.dumps({"uid": "r1", "title": "a novel", "description": "about a garden"})
    monkeypatch.setattr(sys, "stdin", Input(f"{row}\n"))
    predict("--run", *trained_once.runs, "--input", "-", "--jsonl", "--output", tmp_path / "out" / "p.jsonl")
    assert capsys.readouterr().out == ""
    assert json.loads((tmp_path / "out" / "p.jsonl").read_text(encoding="utf-8"))["id"] == "r1"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["p.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--input", "x.csv"], "--input FILE needs --output FILE"),
        (["--input", "x.csv", "--output", "y", "--jsonl"], "--jsonl is for --input -"),
        (["--text", "a"], "need one process"),
    ],
)
def test_what_cannot_be_printed_is_refused(arguments, sentence: str, trained_once, capsys, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert sentence in refusal(capsys, "predict", "--run", trained_once.runs[0], *arguments)


@needs_real_data
@pytest.mark.long
def test_reuters_with_story_llama_learns_and_predicts_in_a_real_process(tmp_path: Path) -> None:
    from tests.helpers import REUTERS, STORY_LLAMA

    environment = os.environ | {"REUTERS_DIR": str(REUTERS), "REUTERS_MODEL": str(STORY_LLAMA)}
    recipe = ROOT / "recipes" / "reuters_lora.yaml"
    settings = ["max_steps=60", "train_metrics_rows=0", "max_length=96", f"output_root={tmp_path}"]
    for key, split in (("val_csv", "validation"), ("test_csv", "test")):
        some = write_csv(tmp_path / f"{split}.csv", read_rows(REUTERS / f"{split}.csv")[:400])
        settings.append(f"data.{key}={some}")
    command = [sys.executable, "-m", "llmcls.train", str(recipe), *settings]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "story-llama" / "reuters10" / "run_0"
    expected = json.loads((run / "metrics.json").read_text())
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").open() if '"train"' in line]
    assert losses[-1] < 0.6 * losses[0]
    command = [sys.executable, "-m", "llmcls.predict", "--run", str(run), "--input", str(tmp_path / "test.csv")]
    done = subprocess.run([*command, "--output", str(tmp_path / "p.jsonl")], env=environment, cwd=ROOT)
    assert done.returncode == 0
    assert_same_metrics(json.loads((tmp_path / "p.metrics.json").read_text()), expected["test"])


def test_the_output_is_a_table_by_its_extension_and_a_file_needs_no_ids(
    trained_once: Experiment, products: Path, tmp_path: Path, log_lines: list[str]
) -> None:
    stored = read_lines(trained_once.runs[0] / "predictions_test.jsonl")
    rows = [{k: v for k, v in row.items() if k != "uid"} for row in read_rows(products / "test.csv")]
    source = write_csv(tmp_path / "input.csv", rows)
    predict("--run", trained_once.runs[0], "--input", source, "--output", tmp_path / "p.csv")
    assert any("has no column 'uid'; its rows are numbered from 0" in line for line in log_lines)
    found = read_rows(tmp_path / "p.csv")
    assert [row["id"] for row in found] == [str(i) for i in range(61)]
    assert [row["labels"] for row in found] == ["|".join(line["labels"]) for line in stored]
    assert float(found[5]["probability_toys"]) == pytest.approx(stored[5]["probabilities"]["toys"], abs=1e-6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["input.csv", "p.csv", "p.metrics.json"]


def test_an_ensemble_prints_its_own_score_and_writes_parquet(
    trained_once: Experiment, products: Path, tmp_path: Path, log_lines: list[str]
) -> None:
    output = tmp_path / "p.parquet"
    predict("--run", *trained_once.runs, "--input", products / "test.csv", "--output", output)
    table = pd.read_parquet(output)
    assert list(table["id"]) == [row["uid"] for row in read_rows(products / "test.csv")]
    score = json.loads((tmp_path / "p.metrics.json").read_text())["f1_micro"]
    (own,) = [line for line in log_lines if line.startswith("mean of 2 runs: ")]
    assert f"micro-F1 {score:.4f}" in own


def test_a_format_needs_a_file(trained_once: Experiment, capsys) -> None:
    found = refusal(capsys, "predict", "--run", trained_once.runs[0], "--text", "a", "--format", "csv")
    assert "--format needs --output; what is printed is JSON lines" in found
