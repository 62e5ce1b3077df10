from __future__ import annotations

from pathlib import Path

from llmcls.export import main
from tests.conftest import Experiment
from tests.helpers import read_json, refusal


def test_the_comparison_is_printed(trained_once: Experiment, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("llmcls.serving.proof.run_without_llmcls", stored_answers(trained_once))
    main(["--run", str(trained_once.runs[0]), "--out", str(tmp_path / "out"), "--dtype", "bfloat16"])
    assert "40 validation rows: largest difference of a probability 5.0e-10 (allowed 5e-02)" in capsys.readouterr().out
    assert read_json(tmp_path / "out" / "config.json")["dtype"] == "bfloat16"
    assert "exists; remove it" in refusal(capsys, "export", "--run", trained_once.runs[0], "--out", tmp_path / "out")


def stored_answers(experiment: Experiment):
    """In place of the script: the stored predictions. The script itself is run in tests/serving/test_export.py."""

    def run(script: Path, arguments: list[str]) -> None:
        stored = experiment.runs[0] / "predictions_validation.jsonl"
        Path(arguments[1]).write_text(stored.read_text(encoding="utf-8"), encoding="utf-8")

    return run
