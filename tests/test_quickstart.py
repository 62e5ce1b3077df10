from __future__ import annotations

from pathlib import Path

from llmcls.quickstart import main
from tests.helpers import read_rows


def test_the_command_makes_what_is_missing_and_leaves_the_rest(tmp_path: Path, capsys) -> None:
    arguments = ["--out", str(tmp_path / "demo"), "--rows", "80", "--steps", "2"]
    main(arguments)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert len(read_rows(tmp_path / "demo/data/train.csv")) == 80
    main(arguments)
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert "exists in" in capsys.readouterr().out
