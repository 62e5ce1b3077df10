from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmcls.common.user_error import UserError
from llmcls.results.finished_runs import open_run
from llmcls.results.run_folder import RunFolder
from llmcls.results.seal import reseal
from llmcls.serving import export, proof
from llmcls.serving.export import ExportOptions, export_run, write_export
from tests.conftest import Experiment
from tests.helpers import read_json, read_lines, train, write_csv

pytestmark = pytest.mark.slow

PIPELINE = """
import json, sys
sys.modules["llmcls"] = None
from transformers import pipeline
classify = pipeline("text-classification", model=sys.argv[1], top_k=None, trust_remote_code=True)
found = classify(json.loads(sys.argv[2]), truncation=True)
print(json.dumps([{x["label"]: x["score"] for x in row} for row in found]))
"""


def test_a_run_travels_with_the_same_answers(trained_once: Experiment, tmp_path: Path) -> None:
    run = open_run(RunFolder(trained_once.runs[0]))
    found = export_run(run, tmp_path / "out", ExportOptions())
    assert (found.split, found.rows, found.changed_decisions) == ("validation", 40, 0)
    assert found.largest_difference <= 1e-5
    assert read_json(tmp_path / "out" / "export.json")["changed_decisions"] == 0
    config = read_json(tmp_path / "out" / "config.json")
    assert list(config["id2label"].values()) == run.labels.names
    assert config["problem_type"] == "multi_label_classification"
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "library_name: transformers" in card
    assert "40 validation rows&#58; largest difference" in card
    assert f"{read_json(run.folder.metrics)['test']['f1_micro']:.4f}" in card

    stored = read_lines(trained_once.runs[0] / "predictions_validation.jsonl")[:3]
    texts = export.read_texts(run.recipe, "validation").texts[:3]
    command = [sys.executable, "-I", "-c", PIPELINE, str(tmp_path / "out"), json.dumps(texts)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    for answer, line in zip(json.loads(done.stdout.splitlines()[-1]), stored, strict=True):
        assert answer == pytest.approx(line["probabilities"], abs=1e-5)


def run_in_this_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, list[str]], None]:
    """In place of `run_without_llmcls`, because a new process takes seconds to import its libraries."""

    def run(script: Path, arguments: list[str]) -> None:
        monkeypatch.setattr(sys, "argv", [str(script), *arguments])
        try:
            runpy.run_path(str(script), run_name="__main__")
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise UserError(f"the exported folder does not load without llmcls: {error}") from error

    return run


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "run_without_llmcls", run_in_this_process(monkeypatch))


def rows() -> list[dict[str, Any]]:
    words = {"a": "novel", "b": "album", "c": "rake"}
    return [{"uid": i, "text": f"the {words[k]} of day {i}", "kind": k} for i, k in enumerate("abc" * 8)]


KINDS: dict[str, tuple[dict[str, Any], ExportOptions]] = {
    "4-bit": ({"model__use_4bit": True}, ExportOptions(tolerance=1e-5)),
    "full": ({"model__lora_r": 0}, ExportOptions()),
    "dora": ({"model__lora_variant": "dora"}, ExportOptions()),
    "mean, both ways": ({"model__pooling": "mean", "model__bidirectional": True}, ExportOptions(remote_code=True)),
    "attention": ({"model__pooling": "attention"}, ExportOptions(remote_code=True)),
    "calibrated classes": (
        {"model__problem_type": "single_label_classification", "data__label_columns": ["kind"],
         "train__calibration": "isotonic"}, ExportOptions(),
    ),
}  # fmt: skip


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_travels(kind: str, write_recipe, tmp_path: Path) -> None:
    changes, options = KINDS[kind]
    table = str(write_csv(tmp_path / "table.csv", rows()))
    if "data__label_columns" in changes:
        changes = changes | {
            "data__train_csv": table, "data__val_csv": table, "data__test_csv": None, "data__text_fields": ["text"],
        }  # fmt: skip
    folder = train(write_recipe(train__max_steps=6, train__train_metrics_rows=0, **changes)) / "run_0"
    found = export_run(open_run(RunFolder(folder)), tmp_path / "out", options)
    assert found.largest_difference <= found.tolerance
    assert kind == "calibrated classes" or found.tolerance == 1e-5
    # A step of an isotonic curve can put two classes level; then rounding decides.
    assert found.unexplained == 0
    assert kind == "calibrated classes" or found.changed_decisions == 0


def drop_head(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_json(name: str, change: Any) -> Any:
    def fault(folder: Path) -> None:
        value = read_json(folder / name)
        change(value)
        (folder / name).write_text(json.dumps(value), encoding="utf-8")

    return fault


def permute(config: dict[str, Any]) -> None:
    names = list(config["id2label"].values())
    config["id2label"] = dict(enumerate(names[1:] + names[:1]))


def lose_thresholds(decisions: dict[str, Any]) -> None:
    decisions["thresholds"] = dict.fromkeys(decisions["thresholds"], 0.99)


FAULTS = {
    "the head is dropped": drop_head,
    "labels are permuted": change_json("config.json", permute),
    "softmax for sigmoid": change_json("config.json", lambda c: c.update(problem_type="single_label_classification")),
    "thresholds are lost": change_json("decisions.json", lose_thresholds),
}  # fmt: skip


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_stops_the_export(
    fault: str, trained_once: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(run: Any, folder: Path, options: ExportOptions) -> None:
        write_export(run, folder, options)
        FAULTS[fault](folder)

    monkeypatch.setattr(export, "write_export", damaged)
    with pytest.raises(UserError, match=r"predicts otherwise than the run|does not load"):
        export_run(open_run(RunFolder(trained_once.runs[0])), tmp_path / "out", ExportOptions())
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".export-*"))


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("data.prompt", "{text} is about", "data.prompt changes what the model reads"),
        ("data.truncation", "windows", "data.truncation is windows, which a tokenizer cannot do"),
        ("model.pooling", "mean", "model.pooling is mean, which transformers does not have; use --remote-code"),
    ],
)
def test_what_cannot_travel_is_refused(
    trained: Experiment, tmp_path: Path, key: str, value: str, sentence: str
) -> None:
    file = trained.runs[0] / "model" / "recipe.yaml"
    recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
    section, _, name = key.partition(".")
    recipe[section][name] = value
    file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    reseal(RunFolder(trained.runs[0]), [file])
    with pytest.raises(UserError, match=sentence):
        export_run(open_run(RunFolder(trained.runs[0])), tmp_path / "out", ExportOptions())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (ExportOptions(int8=True), "--int8 rounds an ONNX graph; add --onnx"),
        (ExportOptions(onnx=True, dtype="bfloat16"), "--onnx computes in float32, not bfloat16"),
    ],
)
def test_options_that_contradict_are_refused(
    trained_once: Experiment, tmp_path: Path, options: ExportOptions, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        export_run(open_run(RunFolder(trained_once.runs[0])), tmp_path / "out", options)
