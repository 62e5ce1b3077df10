from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from llmcls.common import parts
from llmcls.common.user_error import UserError
from llmcls.curve import main
from llmcls.recipe.grid import load_grid, tasks_of
from tests.helpers import read_json, refusal, train

pytestmark = pytest.mark.slow


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Runs are trained in this process; the commands that would have started others."""
    commands: list[list[str]] = []

    def run(command: list[str], what: str) -> None:
        commands.append(command)
        train(Path(command[command.index("llmcls.train") + 1]), *command[command.index("llmcls.train") + 2 :])

    monkeypatch.setattr("llmcls.curve.run_part", run)
    return commands


def test_sizes_are_trained_once_and_the_curve_is_drawn(write_recipe, here, tmp_path: Path, capsys) -> None:
    recipe = write_recipe(train__train_metrics_rows=0, data__label_columns=["books", "toys"])
    arguments = [str(recipe), "--sizes", "16,all", "--seeds", "1", "--min-steps", "2", "max_steps=2"]
    main(arguments)
    assert len(here) == 2
    folder = tmp_path / "outputs" / "tiny-llama" / "products"
    assert {path.name for path in folder.glob("curve*") if path.is_file()} == {
        f"curve.{suffix}" for suffix in ("json", "md", "png", "svg", "yaml")
    }
    assert set(read_json(folder / "curve.json")["points"]) == {"model", "probe", "tfidf_linear"}
    printed = capsys.readouterr().out
    assert "run 1 of 2: curve-16_seed-1" in printed
    assert "twice as many (320 rows)" in printed
    main([*arguments, "--draw-only"])
    main(arguments)
    assert len(here) == 2, "finished runs are kept"
    assert "run 2 of 2: curve-160_seed-1, finished" in capsys.readouterr().out


def test_the_plan_is_a_grid_that_a_sweep_runs(write_recipe, here, tmp_path: Path, capsys) -> None:
    main([str(write_recipe()), "--sizes", "16,32", "--plan-only", "--profile", "ddp", "lora_r=2"])
    assert here == []
    path = tmp_path / "outputs" / "tiny-llama" / "products" / "curve.yaml"
    assert capsys.readouterr().out == f"6 runs; on a cluster: sbatch slurm/sweep.sh {path}\n"
    grid = load_grid(path)
    assert grid.profile.endswith("ddp.yaml")
    assert len(tasks_of(grid)) == 6
    assert "lora_r=2" in tasks_of(grid)[0].overrides


def test_a_run_that_fails_stops_the_curve(write_recipe, monkeypatch) -> None:
    code = 1
    monkeypatch.setattr(parts.subprocess, "Popen", lambda _: SimpleNamespace(wait=lambda: code))
    with pytest.raises(UserError, match="curve-16_seed-1 ended with exit code 1, see above; run again to resume"):
        main([str(write_recipe()), "--sizes", "16"])
    code = 85
    with pytest.raises(SystemExit) as stop:
        main([str(write_recipe()), "--sizes", "16"])
    assert stop.value.code == 85


def test_mistakes_are_one_sentence(write_recipe, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe()
    assert "give numbers from 1 to 160" in refusal(capsys, "curve", recipe, "--sizes", "500")
    assert "--seeds is '1,1'" in refusal(capsys, "curve", recipe, "--sizes", "16", "--seeds", "1,1")
