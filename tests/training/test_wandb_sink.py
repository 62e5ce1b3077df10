"""What a run of wandb contains: tests/training/test_trackers.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmcls.training.wandb_sink import login_problem


@pytest.fixture(autouse=True)
def _nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.mark.parametrize(
    "variables",
    [{"WANDB_MODE": "offline"}, {"WANDB_MODE": "disabled"}, {"WANDB_API_KEY": "k" * 40}],
    ids=["offline", "disabled", "key"],
)
def test_no_login_is_asked_for(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    assert login_problem() == "nobody is logged in; run `wandb login`, or set WANDB_MODE=offline"
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert login_problem() is None


def test_the_login_of_an_own_server_is_looked_for_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine wandb.example.org login user password secret\n")
    assert login_problem() is not None
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org/")
    assert login_problem() is None
