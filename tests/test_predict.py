from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcls.common.user_error import UserError
from llmcls.data.labels import LabelSpace
from llmcls.evaluation import scoring
from llmcls.predict import main
from llmcls.prediction import resumable_predictions
from llmcls.prediction.resumable_predictions import ResumablePredictions
from llmcls.results.predictions import Predictions
from tests.helpers import ROOT, TOPICS, needs_real_data, read_rows, write_csv
from tests.test_train import train


def predict(*arguments: Any) -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    main([str(a) for a in arguments])


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def assert_same_lines(found: Path, expected: Path) -> None:
    """The same rows, labels and, to what a merged adapter's order of summing leaves, probabilities."""
    for line, known in zip(read_lines(found), read_lines(expected), strict=True):
        assert line.pop("probabilities") == pytest.approx(known.pop("probabilities"), abs=1e-6)
        assert line == known


def assert_same_metrics(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_same_metrics(found[name], value)
        elif isinstance(value, list):
            assert found[name] == value, name
        else:
            assert found[name] == pytest.approx(value, abs=1e-6), name


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
        assert_same_lines(output, run / "predictions_test.jsonl")
        assert_same_metrics(json.loads((output.parent / "predictions.metrics.json").read_text()), expected)
        assert sorted(p.name for p in output.parent.iterdir()) == ["predictions.jsonl", "predictions.metrics.json"]


def test_the_recipes_best_run_on_validation_is_taken(write_recipe, products: Path, tmp_path: Path) -> None:
    recipe = write_recipe(train__num_train_epochs=1, exp__seeds=[1, 2, 3], train__metric_for_best_model="loss")
    root = train(recipe)
    losses = [json.loads((root / f"run_{i}" / "metrics.json").read_text())["validation"]["loss"] for i in range(3)]
    predict("--recipe", recipe, "--input", products / "test.csv", "--output", tmp_path / "p.jsonl")
    best = root / f"run_{losses.index(min(losses))}" / "predictions_test.jsonl"
    assert_same_lines(tmp_path / "p.jsonl", best)


def test_input_needs_no_labels_and_keeps_its_order(write_recipe, products: Path, tmp_path: Path) -> None:
    run = train(write_recipe(train__num_train_epochs=1)) / "run_0"
    rows = [{k: row[k] for k in ("description", "uid", "title")} for row in read_rows(products / "test.csv")][::-1]
    write_csv(tmp_path / "unlabelled.csv", rows)
    predict("--run", run, "--input", tmp_path / "unlabelled.csv", "--output", tmp_path / "p.jsonl")
    lines = read_lines(tmp_path / "p.jsonl")
    assert [line["id"] for line in lines] == [row["uid"] for row in rows]
    assert set(lines[0]) == {"id", "probabilities", "labels"}
    thresholds = json.loads((run / "thresholds.json").read_text(encoding="utf-8"))["values"]
    for line in lines:
        assert line["labels"] == [t for t in TOPICS if line["probabilities"][t] >= thresholds[t]]
    assert not (tmp_path / "p.metrics.json").exists()


def test_the_run_folder_can_be_moved_and_needs_only_the_base_model(write_recipe, products, tmp_path) -> None:
    run = train(write_recipe(train__num_train_epochs=1)) / "run_0"
    moved = tmp_path / "elsewhere" / "my run"
    moved.parent.mkdir()
    run.rename(moved)
    (tmp_path / "recipe.yaml").unlink()
    predict("--run", moved, "--input", products / "test.csv", "--output", tmp_path / "p.jsonl")
    assert_same_lines(tmp_path / "p.jsonl", moved / "predictions_test.jsonl")


def test_an_interrupted_prediction_goes_on_where_it_stopped(
    write_recipe, products: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(write_recipe(train__num_train_epochs=1)) / "run_0"
    for module in (scoring, resumable_predictions):
        monkeypatch.setattr(module, "CHUNK_ROWS", 16)
    test, output = products / "test.csv", tmp_path / "p.jsonl"
    predict("--run", run, "--input", test, "--output", tmp_path / "whole.jsonl")
    written: list[int] = []
    real = ResumablePredictions.append

    def dying(self: Any, lines: Any, logits: Any) -> None:
        if len(written) == 2:
            # A half-written line, as a killed process leaves it.
            with self._lines.open("a", encoding="utf-8") as file:
                file.write('{"id": "P')
            raise KeyboardInterrupt
        written.append(len(logits))
        real(self, lines, logits)

    monkeypatch.setattr(ResumablePredictions, "append", dying)
    with pytest.raises(KeyboardInterrupt):
        predict("--run", run, "--input", test, "--output", output)
    assert not output.exists()
    resumed: list[int] = []

    def counting(self: Any, lines: Any, logits: Any) -> None:
        resumed.append(len(logits))
        real(self, lines, logits)

    monkeypatch.setattr(ResumablePredictions, "append", counting)
    predict("--run", run, "--input", test, "--output", output)
    assert written == [16, 16]
    assert resumed == [16, 13]
    assert output.read_text() == (tmp_path / "whole.jsonl").read_text()
    assert json.loads((tmp_path / "p.metrics.json").read_text()) == json.loads(
        (tmp_path / "whole.metrics.json").read_text()
    )


def test_partial_output_of_another_input_is_not_taken_for_this_one(tmp_path: Path) -> None:
    labels = LabelSpace(["a", "b"], ["a", "b"], "multi_label_classification")
    partial = ResumablePredictions(tmp_path / "p.jsonl", labels)
    assert partial.resume("one") == 0
    zeros = np.zeros((4096, 2), dtype=np.float32)
    partial.append(Predictions([str(i) for i in range(4096)], zeros, zeros > 0, None), zeros)
    assert ResumablePredictions(tmp_path / "p.jsonl", labels).resume("one") == 4096
    assert ResumablePredictions(tmp_path / "p.jsonl", labels).resume("other") == 0


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("")
    with pytest.raises(UserError, match="was started but not finished"):
        predict("--run", tmp_path, "--input", "x.csv", "--output", "y")


@needs_real_data
def test_reuters_with_story_llama_learns_and_predicts_in_a_real_process(tmp_path: Path) -> None:
    from tests.helpers import REUTERS, STORY_LLAMA

    environment = os.environ | {"REUTERS_DIR": str(REUTERS), "REUTERS_MODEL": str(STORY_LLAMA)}
    recipe = ROOT / "recipes" / "reuters_lora.yaml"
    settings = ["max_steps=60", "train_metrics_rows=0", "max_length=96", f"output_root={tmp_path}"]
    command = [sys.executable, "-m", "llmcls.train", str(recipe), *settings]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "story-llama" / "reuters10" / "run_0"
    expected = json.loads((run / "metrics.json").read_text())
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").open() if '"train"' in line]
    assert losses[-1] < 0.6 * losses[0]
    command = [sys.executable, "-m", "llmcls.predict", "--run", str(run), "--input", str(REUTERS / "test.csv")]
    done = subprocess.run([*command, "--output", str(tmp_path / "p.jsonl")], env=environment, cwd=ROOT)
    assert done.returncode == 0
    assert_same_metrics(json.loads((tmp_path / "p.metrics.json").read_text()), expected["test"])
