"""Each stage accepts a right result and refuses a wrong one; tests/test_rehearse.py runs them on real processes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from llmcls.common.user_error import UserError
from llmcls.recipe.load import load_recipe
from llmcls.rehearsal import stages
from llmcls.rehearsal.miniature import Miniature
from llmcls.rehearsal.stages import Stage, rehearse
from tests.helpers import ROOT

# The shared experiment takes 160 / 16 = 10 optimizer steps and logs every second one.
STEPS = 5


@pytest.fixture
def stage(trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """A rehearsal whose processes have already run: their folders are copies of a trained run."""
    profile = ROOT / "accel_configs" / "cpu.yaml"
    recipe = load_recipe(trained.recipe)
    mini = Miniature(recipe=recipe, path=trained.recipe, stand_ins=[])
    found = Stage(profile, yaml.safe_load(profile.read_text()), 1, mini, tmp_path)
    for name in ("whole", "cut"):
        shutil.copytree(trained.runs[0], found.run_folder(name).path)
    monkeypatch.setattr(stages, "_train", lambda *_, **__: None)
    return found


def change_loss(stage: Stage, name: str, factor: float) -> None:
    log = stage.run_folder(name).metrics_log
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    last = next(line for line in reversed(lines) if line["split"] == "train")
    last["loss"] *= factor
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_complete_training_is_proved(stage: Stage) -> None:
    proofs = list(stages._rehearse_training(stage, STEPS))
    assert "x 1, weights in float32: 5 optimizer steps, loss " in proofs[0]
    assert proofs[-1] == "evaluation scored each of 61 test rows once, in order"


def test_missing_steps_rows_and_processes_fail_it(stage: Stage) -> None:
    with pytest.raises(RuntimeError, match="5 of 6 optimizer steps were logged"):
        list(stages._rehearse_training(stage, 6))
    predictions = stage.run_folder("whole").predictions("test")
    predictions.write_text("".join(predictions.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(RuntimeError, match="60 of 61 test rows were evaluated"):
        list(stages._rehearse_training(stage, STEPS))
    stage.processes = 2
    with pytest.raises(RuntimeError, match="1 processes trained"):
        list(stages._rehearse_training(stage, STEPS))


def test_a_resumed_run_must_have_the_same_losses(stage: Stage) -> None:
    # The checkpoint of a finished run is of step 10, which is the middle of 20.
    (proof,) = stages._rehearse_resume(stage, 20)
    assert proof.startswith("stopped after step 10, resumed: same loss curve as the uninterrupted run")
    change_loss(stage, "cut", 1.01)
    with pytest.raises(RuntimeError, match=r"after a resume the loss is off by 1\.0e-02"):
        list(stages._rehearse_resume(stage, 20))
    with pytest.raises(RuntimeError, match="the checkpoint is of step 10, not 4"):
        list(stages._rehearse_resume(stage, 8))


def test_stages_follow_each_other_until_one_fails(stage: Stage) -> None:
    proofs, seen = rehearse(stage, STEPS), []
    for proof in proofs:
        seen.append(proof)
        if proof.startswith("evaluation scored each of 61 test rows"):
            break
    assert len(seen) == 5
    with pytest.raises(RuntimeError, match="the checkpoint is of step 10"):
        next(proofs)


def test_an_error_of_a_process_is_passed_on_and_a_crash_is_shown() -> None:
    fails = "import sys; print('error: no such column', file=sys.stderr); sys.exit(2)"
    with pytest.raises(UserError, match=r"^no such column$"):
        stages._execute([sys.executable, "-c", fails])
    with pytest.raises(RuntimeError, match=r"ended with 1:(.|\n)*ZeroDivisionError"):
        stages._execute([sys.executable, "-c", "1 / 0"])
    stages._execute([sys.executable, "-c", "import os; assert os.environ['CUDA_VISIBLE_DEVICES'] == ''"])
