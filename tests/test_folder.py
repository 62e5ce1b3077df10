from __future__ import annotations

from pathlib import Path

import pytest

from llmcls.folder import main


def test_it_prints_where_training_writes(write_recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(write_recipe())
    for overrides, run in (([], ""), (["exp.run_name=long"], "long"), (["run_name=b"], "b")):
        main([recipe, *overrides])
        assert Path(capsys.readouterr().out.strip()) == tmp_path / "outputs" / "tiny-llama" / "products" / run
