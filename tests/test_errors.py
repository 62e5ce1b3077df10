from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmcls.common.user_error import UserError
from llmcls.errors import main
from tests.helpers import read_rows, train, write_csv

pytestmark = pytest.mark.slow


def test_the_command_writes_and_prints_what_it_found(
    write_recipe, products: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = read_rows(products / "test.csv")
    rows[3] = rows[3] | {k: read_rows(products / "train.csv")[5][k] for k in ("title", "description")}
    path = tmp_path / "test.csv"
    write_csv(path, rows)
    root = train(write_recipe(train__num_train_epochs=1, data__test_csv=str(path), exp__seeds=[1, 2]))
    main(["--run", str(root / "run_0"), "--top", "3"])
    out = capsys.readouterr().out
    assert "most confident first (2 seed(s))" in out
    found = json.loads((root / "run_0" / "errors_test.json").read_text(encoding="utf-8"))
    assert rows[3]["uid"] in {d["id"] for d in found["duplicates"]}
    assert found["mistakes"][0]["text"]


def test_a_run_without_predictions_is_named(trained) -> None:
    run = trained.runs[0]
    for path in run.glob("predictions_*.jsonl"):
        path.unlink()
    with pytest.raises(UserError, match="has no predictions of validation or test"):
        main(["--run", str(run)])
