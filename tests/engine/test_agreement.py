from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState

from llmcls.common.user_error import UserError
from llmcls.engine.agreement import first_process_first, from_main, require_same
from tests.helpers import launch


def test_a_single_process_needs_no_agreement() -> None:
    state = PartialState(cpu=True)
    assert from_main(state, {"step": 3}) == {"step": 3}
    with first_process_first(state, is_first=True):
        pass


def test_a_rank_that_sees_other_files_is_named(tmp_path: Path) -> None:
    require_same("7", "7", tmp_path)
    with pytest.raises(UserError, match=f"the machine {socket.gethostname()} does not see there what the main process"):
        require_same(None, "7", tmp_path)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.long
def test_ranks_wait_longer_than_a_collective_may_take(tmp_path: Path) -> None:
    done = launch(2, "tests.distributed.agreement_worker", "patience", str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)] == ["by the main process; rank 0"] * 2


@pytest.mark.slow
@pytest.mark.distributed
def test_a_rank_that_does_not_see_the_checkpoint_stops_the_run(write_recipe: Any, tmp_path: Path) -> None:
    recipe = write_recipe(train__num_train_epochs=1, model__lora_dropout=0.0)
    done = launch(2, "tests.distributed.agreement_worker", "resume", str(tmp_path), str(recipe))
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert f"the machine {socket.gethostname()} does not see there" in errors[0]
    assert "put exp.output_root on a file system that all machines share" in errors[0]
