from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmcls.diagnosis import memory_fit
from llmcls.diagnosis.expectation import Expected
from tests.diagnosis.helpers import find


def test_a_small_model_fits_into_this_machine(write_recipe, tmp_path: Path) -> None:
    found = find("fit", tmp_path, write_recipe())
    assert found.status == "ok"
    assert found.found.startswith("a step of 8 x 64 tokens needs about ")
    assert found.details["have_gib"] == memory_fit.memory_of(torch.device("cpu"))


@pytest.mark.parametrize(
    "peak, gpus, status, advice",
    [
        (30, 1, "ok", ""),
        (60, 1, "warning", "it may not fit"),
        (100, 1, "fault", "lower train.micro_batch_tokens"),
        (100, 8, "warning", "shard it over the 8 GPUs"),
        (1000, 8, "fault", "lower train.micro_batch_tokens"),
    ],
)
def test_what_does_not_fit_is_a_fault_unless_several_gpus_can_share_it(
    peak: float, gpus: int, status: str, advice: str, write_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_fit, "device_of", lambda subject: torch.device("cuda"))
    monkeypatch.setattr(memory_fit, "memory_of", lambda device: 80.0)
    monkeypatch.setattr(memory_fit, "config_of", lambda subject: None)
    monkeypatch.setattr(memory_fit, "expected_step", lambda *_: Expected(peak, 1.8, 1.0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    found = find("fit", tmp_path, write_recipe())
    assert found.status == status
    assert advice in found.advice


def test_without_a_recipe_there_is_nothing_to_fit(tmp_path: Path) -> None:
    assert find("fit", tmp_path).status == "skipped"
