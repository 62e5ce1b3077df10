from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from llmcls.common.user_error import UserError
from llmcls.thresholds import main
from tests.helpers import TOPICS, read_rows, train, write_csv
from tests.results.page import read_page

pytestmark = pytest.mark.slow


def files(run: Path) -> tuple[dict, dict, str]:
    read = [json.loads((run / name).read_text(encoding="utf-8")) for name in ("thresholds.json", "metrics.json")]
    return read[0], read[1], (run / "predictions_test.jsonl").read_text(encoding="utf-8")


def test_a_run_is_retuned_without_training_and_back(trained, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained.runs[0]
    tuned, metrics, lines = files(run)
    assert tuned["rule"] == metrics["thresholds"]["rule"] == "joint"
    assert tuned["metric"] == "f1_micro"
    assert "f1_micro" in tuned["reason"]
    assert set(metrics["threshold_rules"]) == {"fixed", "global", "per_class", "joint"}
    main(["--run", str(run), "--rule", "fixed", "--value", "0.3", "--at-least-one", "--apply"])
    assert "micro-F1" in capsys.readouterr().out
    fixed, other, _ = files(run)
    assert set(fixed["values"].values()) == {0.3}
    assert all(
        json.loads(line)["labels"] for line in (run / "predictions_test.jsonl").read_text(encoding="utf-8").splitlines()
    )
    assert other["test"]["f1_micro"] != metrics["test"]["f1_micro"]
    assert other["thresholds"] == {"rule": "fixed", "metric": None, "reason": None}
    main(["--run", str(run), "--metric", "f1_macro", "--apply"])
    macro = files(run)[0]
    assert macro["metric"] == "f1_macro"
    assert macro["rule"] != "joint"
    assert f"rule        fixed -> {macro['rule']} for f1_macro ({macro['reason']})" in capsys.readouterr().out
    main(["--run", str(run), "--apply"])
    again, back, lines_back = files(run)
    assert back["test"]["f1_macro"] == pytest.approx(metrics["test"]["f1_macro"])
    assert again["values"] == pytest.approx(tuned["values"], abs=1e-6)
    assert lines_back == lines


def test_nothing_is_written_before_someone_applies_it(trained, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained.runs[0]
    before = {path: path.read_bytes() for path in trained.folder.rglob("*") if path.is_file()}
    main(["--run", str(run), "--rule", "fixed", "--value", "0.3"])
    out = capsys.readouterr().out
    old = json.loads((run / "thresholds.json").read_text(encoding="utf-8"))["values"]
    for name, value in old.items():
        assert [name, f"{value:.4f}", "0.3000"] in [line.split() for line in out.splitlines()]
    assert "rule        joint for f1_micro -> fixed\n" in out
    assert re.search(r"\nvalidation  micro-F1 0\.\d{4} -> 0\.\d{4}  macro-F1 ", out)
    assert "nothing was written; give --apply" in out
    assert {path: path.read_bytes() for path in trained.folder.rglob("*") if path.is_file()} == before


def test_summary_and_reports_follow_the_thresholds(trained, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained.runs[0]
    main(["--run", str(run), "--rule", "fixed", "--value", "0.3", "--apply"])
    value = files(run)[1]["test"]["f1_micro"]
    summary = json.loads((trained.folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["test"]["f1_micro"]["values"][0] == value
    assert f"| {value:.4f} |" in (trained.folder / "summary.md").read_text(encoding="utf-8")
    assert read_page(run / "report.html").one(data_headline="f1_micro").text == f"{value:.3f}"
    whole = read_page(trained.folder / "report.html")
    assert whole.one(data_headline="f1_micro").text == f"{summary['test']['f1_micro']['mean']:.3f}"
    assert f"{value:.4f}" in (run / "model" / "README.md").read_text(encoding="utf-8")
    out = capsys.readouterr().out
    for name in ("thresholds.json", "report.html", "summary.md", "README.md"):
        assert re.search(rf"written: .*{re.escape(name)}\n", out)


def test_test_labels_have_no_say_in_the_thresholds(write_recipe, recipe_values, products: Path, tmp_path: Path) -> None:
    rows = read_rows(products / "test.csv")
    order = np.random.default_rng(0).permutation(len(rows))
    shuffled = [row | {t: rows[j][t] for t in TOPICS} for row, j in zip(rows, order, strict=True)]
    recipe = write_recipe(train__num_train_epochs=1)
    true = train(recipe, "exp.run_name=given") / "run_0"
    path = tmp_path / "shuffled.csv"
    write_csv(path, shuffled)
    other = train(recipe, "exp.run_name=shuffled", f"data.test_csv={path}") / "run_0"
    assert files(true)[0] == files(other)[0]
    assert files(true)[1]["test"]["average_precision_macro"] != files(other)[1]["test"]["average_precision_macro"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--metric", "f1_mikro"], "--metric is 'f1_mikro'; it must be f1.*, or a metric such as f1_micro"),
        (["--rule", "fixed", "--value", "1.5"], "--value between 0 and 1"),
    ],
)
def test_what_cannot_be_tuned_is_said(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        main(["--run", str(tmp_path), *arguments])


def test_a_metric_of_another_task_is_refused(trained_once) -> None:
    with pytest.raises(UserError, match=r"--metric is f1_positive, which is for binary tasks; .*run_0 is multi_label"):
        main(["--run", str(trained_once.runs[0]), "--metric", "f1_positive"])


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        main(["--run", str(tmp_path)])
