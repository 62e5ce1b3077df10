"""The driver and the build of torch, on machines that a script in place of nvidia-smi pretends."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from llmcls.diagnosis import graphics
from llmcls.diagnosis.graphics import Driver, find_driver, has_kernels
from tests.diagnosis.helpers import find

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nvidia-smi is replaced by a shell script")

SUMMARY = "| NVIDIA-SMI 550.90.07   Driver Version: 550.90.07   CUDA Version: 12.4 |"


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with one card."""
    smi(tmp_path, monkeypatch, "echo '550.90.07, NVIDIA GeForce RTX 3060, 12288 MiB'")


def smi(folder: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """Put an nvidia-smi that gives this answer to a query in front of all programs."""
    program = folder / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncase \"$1\" in --query*) {answer};; *) echo '{SUMMARY}';; esac\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_the_driver_and_its_cards_are_listed(card, tmp_path: Path) -> None:
    assert find_driver() == Driver("550.90.07", (12, 4), ["NVIDIA GeForce RTX 3060 (12288 MiB)"])
    found = find("driver", tmp_path)
    assert found.status == "ok"
    assert found.found == "driver 550.90.07, CUDA up to 12.4: NVIDIA GeForce RTX 3060 (12288 MiB)"


def test_a_driver_that_does_not_answer_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path, monkeypatch, "echo 'NVIDIA-SMI has failed because it could not talk to the driver.'; exit 9")
    found = find("driver", tmp_path)
    assert found.status == "fault"
    assert "has failed because" in found.found


def test_a_card_without_a_driver_is_seen_on_the_bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(graphics, "PCI", tmp_path)
    for slot, vendor, kind in (("0", "0x8086", "0x030000"), ("1", "0x10de", "0x040300")):
        (tmp_path / slot).mkdir()
        (tmp_path / slot / "vendor").write_text(f"{vendor}\n")
        (tmp_path / slot / "class").write_text(f"{kind}\n")
    # Intel graphics, and the sound of an NVIDIA card.
    assert find("driver", tmp_path).status == "skipped"
    (tmp_path / "1" / "class").write_text("0x030200\n")
    assert find("driver", tmp_path).advice == "install the driver of the card"


def test_hidden_cards_are_a_warning(card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find("driver", tmp_path).advice == "unset CUDA_VISIBLE_DEVICES"


def test_a_cpu_build_beside_a_card_is_a_fault(card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    found = find("torch", tmp_path)
    assert found.status == "fault"
    assert "is a CPU build, but there is a NVIDIA GeForce RTX 3060" in found.found
    assert "--torch-backend=auto" in found.advice


def test_a_build_for_a_newer_driver_is_a_fault(card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = find("torch", tmp_path)
    assert found.status == "fault"
    assert "is built for CUDA 13.0 and cannot use the card; driver 550.90.07 supports CUDA up to 12.4" in found.found


def test_a_build_without_kernels_for_the_card_is_a_fault(card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    answers = {
        "is_available": True, "device_count": 1, "get_device_capability": (12, 0), "get_device_name": "RTX 5090",
        "get_arch_list": ["sm_80", "sm_90"],
    }  # fmt: skip
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    found = find("torch", tmp_path)
    assert found.status == "fault"
    assert "has no kernels for RTX 5090 (sm_120; it has sm_80, sm_90)" in found.found


@pytest.mark.parametrize(
    "capability, kernels, runs",
    [
        ((8, 9), ["sm_80"], True),
        ((9, 0), ["sm_80", "sm_86"], False),
        ((12, 0), ["sm_90", "compute_90"], True),
        ((7, 5), ["sm_80", "compute_80"], False),
        ((9, 0), ["sm_90a"], True),
    ],
)
def test_machine_code_runs_on_its_generation_and_portable_code_on_later_ones(
    capability: tuple[int, int], kernels: list[str], runs: bool
) -> None:
    assert has_kernels(capability, kernels) == runs
