from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from llmcls.common.user_error import UserError
from llmcls.results.run_folder import RunFolder
from llmcls.training.best_checkpoints import WEIGHTS, load_best, require_best, save_best
from tests.faults.kills import killed_at
from tests.model.helpers import build
from tests.training.test_checkpoints import head_of

pytestmark = pytest.mark.slow


def test_earlier_best_models_are_kept_in_order(write_recipe, tmp_path: Path) -> None:
    run, accelerator, model = RunFolder(tmp_path), Accelerator(cpu=True), build(write_recipe())
    for step in (1, 2, 3, 4):
        torch.nn.init.constant_(head_of(model), step)
        save_best(run, accelerator, model, keep=3, step=step)
    saved = [load_file(run.best_checkpoint(rank) / WEIGHTS) for rank in (1, 2, 3)]
    assert [next(w for n, w in s.items() if "score" in n)[0, 0].item() for s in saved] == [4.0, 3.0, 2.0]
    assert not run.best_checkpoint(4).exists()
    torch.nn.init.zeros_(head_of(model))
    load_best(run, accelerator, model)
    assert float(head_of(model)[0, 0].detach()) == 4.0


def test_a_run_without_a_best_model_says_so(write_recipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"best is damaged: manifest\.json is missing"):
        load_best(RunFolder(tmp_path), Accelerator(cpu=True), build(write_recipe()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_kill_at_any_file_operation_loses_no_second_best(write_recipe, tmp_path: Path) -> None:
    accelerator, model = Accelerator(cpu=True), build(write_recipe())

    def save(folder: Path, step: int) -> None:
        torch.nn.init.constant_(head_of(model), step)
        save_best(RunFolder(folder), accelerator, model, keep=3, step=step)

    def kept(folder: Path) -> list[float]:
        weights = [load_file(RunFolder(folder).best_checkpoint(rank) / WEIGHTS) for rank in (1, 2, 3)]
        return [next(w for n, w in found.items() if "score" in n)[0, 0].item() for found in weights]

    number = 0
    while True:
        folder = tmp_path / str(number)
        for step in (1, 2, 3):
            save(folder, step)
        killed = killed_at(number, lambda folder=folder: save(folder, 4))
        # The run resumes before the evaluation, with a best checkpoint that is whole, and comes to it again.
        require_best(RunFolder(folder), folder, 0, best_step=3)
        save(folder, 4)
        assert kept(folder) == [4.0, 3.0, 2.0], number
        assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best", "best_2", "best_3"}
        if not killed:
            break
        number += 1
    assert number > 10
