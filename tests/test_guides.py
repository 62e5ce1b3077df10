"""The five guides can be walked through: `make guides` runs them. Here: each of their commands is run or excused."""

from __future__ import annotations

import pytest

from tests.guides import GUIDES, LEFT_OUT, commands, reason_to_leave_out


@pytest.mark.parametrize("page", GUIDES)
def test_most_of_a_guide_is_run(page: str) -> None:
    found = commands(page)
    run = [command for command in found if reason_to_leave_out(command) is None]
    assert len(run) >= 2
    assert any("llmcls" in command or "slurm/" in command or "launch/run.py" in command for command in run)


def test_no_excuse_is_left_over() -> None:
    everything = [command for page in GUIDES for command in commands(page)]
    assert [b for b in LEFT_OUT if not any(command.startswith(b) for command in everything)] == []


def test_the_csv_guide_goes_from_the_file_to_predictions() -> None:
    programs = [" ".join(command.split()[:3]) for command in commands("your-data")[:4]]
    assert programs == [
        "python -m llmcls.init",
        "python -m llmcls.check",
        "llmcls train recipes/reviews.yaml",
        "python -m llmcls.predict",
    ]
