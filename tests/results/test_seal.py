from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from llmcls.common.files import read_json, write_json
from llmcls.common.user_error import UserError
from llmcls.evaluation.calibration import load_calibration
from llmcls.evaluation.thresholds import load_thresholds
from llmcls.evaluation.tuning import Tuning
from llmcls.report import main as report
from llmcls.results.finished_runs import open_run, retune
from llmcls.results.run_folder import RunFolder
from tests.common.test_manifest import DAMAGES
from tests.helpers import refusal

DECISIVE = [
    "model/adapter_model.safetensors", "model/adapter_config.json", "model/labels.json", "model/recipe.yaml",
    "model/tokenizer.json", "calibration.json", "environment.json",
]  # fmt: skip
DESCRIBING = ["metrics.json", "thresholds.json", "predictions_test.jsonl", "predictions_validation.jsonl"]


@pytest.fixture
def run(trained_once, tmp_path: Path) -> RunFolder:
    """A copy of a finished run."""
    ignored = shutil.ignore_patterns("checkpoints", "logs")
    return RunFolder(Path(shutil.copytree(trained_once.runs[0], tmp_path / "run_0", ignore=ignored)))


def test_a_finished_run_is_sealed_with_all_that_describes_it(trained_once) -> None:
    listed = read_json(trained_once.runs[0] / "manifest.json")["files"]
    assert {*DECISIVE, *DESCRIBING, "recipe.yaml", "report.html", "model/README.md"} <= set(listed)
    assert not any(name.startswith(("checkpoints", "logs", "log.txt")) for name in listed)


def test_every_damage_of_what_decides_a_prediction_is_refused(run: RunFolder) -> None:
    for name in DECISIVE:
        content = (run.path / name).read_bytes()
        for kind, change in DAMAGES.items():
            change(run.path / name)
            with pytest.raises(UserError, match=r"is damaged|was started but not finished") as error:
                open_run(run)
            assert name in str(error.value) or kind == "gone", (name, kind)
            (run.path / name).write_bytes(content)
    open_run(run)


def test_a_change_of_what_describes_a_run_is_named(run: RunFolder, log_lines) -> None:
    for name in DESCRIBING:
        DAMAGES["middle"](run.path / name)
    open_run(run)
    changed = [line for line in log_lines if "changed by hand, or damaged" in line]
    assert [name for name in DESCRIBING if any(name in line for line in changed)] == DESCRIBING


def test_thresholds_that_were_edited_are_used_with_a_warning(run: RunFolder, log_lines) -> None:
    saved = read_json(run.thresholds)
    write_json(run.thresholds, saved | {"values": dict.fromkeys(saved["values"], 0.25)})
    labels = open_run(run).labels
    assert set(load_thresholds(run.thresholds, labels.names).values) == {0.25}
    assert any("thresholds.json" in line for line in log_lines)


def test_commands_that_rewrite_a_run_keep_its_seal(trained, log_lines, capsys) -> None:
    run = RunFolder(trained.runs[0])
    retune(open_run(run), Tuning("global"))
    report([str(run.path)])
    open_run(run)
    assert [line for line in log_lines if "damaged" in line] == []


def test_a_run_of_an_older_version_opens_with_a_warning(run: RunFolder, log_lines) -> None:
    (run.path / "manifest.json").unlink()
    open_run(run)
    assert [line for line in log_lines if "an older version wrote it" in line]
    run.calibration.unlink()
    with pytest.raises(UserError, match=r"calibration\.json is missing"):
        load_calibration(run.calibration, 10)


def test_a_damaged_run_is_one_sentence_to_the_user(run: RunFolder, products: Path, tmp_path: Path, capsys) -> None:
    DAMAGES["middle"](run.path / "model" / "adapter_model.safetensors")
    arguments = ["--input", products / "test.csv", "--output", tmp_path / "p.jsonl"]
    found = refusal(capsys, "predict", "--run", run.path, *arguments)
    assert "run_0 is damaged: model/adapter_model.safetensors has another content than was written" in found
    assert not (tmp_path / "p.jsonl").exists()
