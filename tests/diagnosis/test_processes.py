from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from llmcls.diagnosis import processes
from llmcls.diagnosis.findings import Subject
from tests.diagnosis.helpers import find


def test_a_process_that_cannot_form_a_group_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    error, _ = processes.exchange("gloo", 1)
    assert error is not None
    assert "nowhere0" in error


def test_a_failed_exchange_is_a_fault_with_advice_for_its_backend(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(processes, "exchange", lambda backend, count: ("unhandled system error", 0.0))
    found = find("processes", tmp_path)
    assert found.status == "fault"
    assert "failed: unhandled system error" in found.found
    assert ("NCCL_DEBUG" if torch.cuda.is_available() else "GLOO_SOCKET_IFNAME=lo") in found.advice


@pytest.mark.parametrize(
    "gpus, said", [(1, "NCCL starts on the GPU; there is no"), (4, "all-reduce over nccl with 4 GPU(s) works (9.0")]
)
def test_a_single_gpu_has_no_rate_of_exchange(gpus: int, said: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(processes, "exchange", lambda backend, count: (None, 9.0))
    found = processes.all_reduce(Subject(None, tmp_path))
    assert (found.status, found.details["processes"]) == ("ok", gpus)
    assert found.found.startswith(said)


def test_processes_that_hang_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    # Less than it takes to import torch.
    monkeypatch.setattr(processes, "SECONDS", 0.2)
    assert processes.exchange("gloo", 1) == ("it did not end within 0.2 s", 0.0)


@pytest.mark.skipif(sys.platform == "win32", reason="sinfo is replaced by a shell script")
@pytest.mark.parametrize(
    "script, status, said",
    [
        ("echo 'gpu*|4|gpu:h100:8|up'; echo 'old|2|(null)|down'", "ok", "partitions: gpu (4 nodes, gpu:h100:8)"),
        ("echo 'cpu|2|(null)|up'", "ok", "partitions: cpu (2 nodes, (null)); none has GPUs"),
        ("echo 'gpu|4|gpu:8|down'", "warning", "no partition that is up"),
        (
            "echo 'sinfo: error: no controller' >&2; exit 1",
            "warning",
            "no cluster answers: sinfo: error: no controller",
        ),
    ],
)
def test_the_partitions_of_slurm_are_listed(
    script: str, status: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "sinfo"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = find("slurm", tmp_path)
    assert found.status == status
    assert said in found.found


def test_a_machine_without_slurm_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find("slurm", tmp_path).status == "skipped"
