from __future__ import annotations

import os

import pytest
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType

from llmcls.rehearsal.cpu_stand_in import stand_in_for_gpus


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put back what the stand-in replaces for the whole process."""
    monkeypatch.setattr(PartialState, "_prepare_backend", PartialState._prepare_backend)
    for name in ("ACCELERATE_TORCH_DEVICE", "DS_ACCELERATOR", "LOCAL_RANK", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="with a GPU nothing stands in for it")
def test_launched_processes_pass_for_gpu_processes_over_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_gpus()
    state = object.__new__(PartialState)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert state._prepare_backend() == ("gloo", DistributedType.MULTI_GPU)
    assert os.environ["ACCELERATE_TORCH_DEVICE"] == os.environ["DS_ACCELERATOR"] == "cpu"
    # A process that asks for the CPU gets what accelerate gives it.
    assert state._prepare_backend(True)[1] != DistributedType.MULTI_GPU


def test_a_plain_process_is_left_alone() -> None:
    before = object.__new__(PartialState)._prepare_backend()
    stand_in_for_gpus()
    assert object.__new__(PartialState)._prepare_backend() == before


def test_deepspeed_compiles_no_collective(monkeypatch: pytest.MonkeyPatch) -> None:
    deepspeed = pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    monkeypatch.setitem(deepspeed.ops.__compatible_ops__, "deepspeed_shm_comm", True)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    stand_in_for_gpus()
    assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False
