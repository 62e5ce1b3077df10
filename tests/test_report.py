from __future__ import annotations

import pytest

from llmcls.common.user_error import UserError
from llmcls.report import main


def test_an_experiment_gets_the_reports_of_its_runs_and_a_summary(trained, capsys) -> None:
    files = [run / name for run in trained.runs for name in ("report.html", "model/README.md")]
    files += [trained.folder / "summary.md", trained.folder / "report.html"]
    before = [path.read_text(encoding="utf-8") for path in files]
    for path in files:
        path.unlink()
    main([str(trained.folder)])
    assert [path.read_text(encoding="utf-8") for path in files] == before
    out = capsys.readouterr().out
    assert out.count("report: ") == out.count("model card: ") == 2
    assert out.count("summary: ") == out.count("report of all seeds: ") == 1


def test_a_run_gets_its_report_and_its_card_only(trained, capsys) -> None:
    (trained.folder / "summary.md").unlink()
    main([str(trained.runs[1])])
    run = trained.runs[1]
    assert capsys.readouterr().out == f"report: {run / 'report.html'}\nmodel card: {run / 'model' / 'README.md'}\n"
    assert not (trained.folder / "summary.md").exists()


def test_a_folder_without_runs_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="is neither a finished run folder nor a folder of runs"):
        main([str(tmp_path)])
