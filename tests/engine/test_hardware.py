from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llmcls.engine.hardware import Hardware, driver_version, find_hardware, read_hardware

Smi = Callable[..., None]


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Smi:
    """A function that puts an nvidia-smi on the PATH, and nothing else: its answer to a query, and its list."""

    def install(output: str, code: int = 0, listing: str = "") -> None:
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        list_them = f"if [ $1 = -L ]; then printf '{listing}'; exit 0; fi"
        program.write_text(f"#!/bin/sh\n{list_them}\nprintf '{output}'\nexit {code}\n")
        program.chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return install


pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-in for nvidia-smi is a shell script")


CARDS = "GPU-5f00-aa, 81920\\nGPU-6c11-bb, 24576\\n"
SLICES = (
    "GPU 0: NVIDIA A100 (UUID: GPU-5f00-aa)\\n"
    "  MIG 1g.10gb     Device  0: (UUID: MIG-aaaa-1)\\n"
    "  MIG 3g.40gb     Device  1: (UUID: MIG-bbbb-2)\\n"
)


def test_memory_is_read_in_gib(nvidia_smi: Smi) -> None:
    nvidia_smi(CARDS)
    assert find_hardware() == Hardware([80.0, 24.0], 1)


def test_without_nvidia_smi_or_with_a_broken_one_there_is_no_gpu(nvidia_smi: Smi) -> None:
    assert find_hardware() == Hardware([], 1)
    nvidia_smi("NVIDIA-SMI has failed, as always\\n", code=9)
    assert find_hardware() == Hardware([], 1)
    for nothing in ("", "No devices were found\\n"):
        nvidia_smi(nothing)
        assert find_hardware() == Hardware([], 1)


def test_a_gpu_that_shares_the_memory_of_the_machine_has_half_of_it(nvidia_smi: Smi) -> None:
    nvidia_smi("GPU-5f00-aa, [N/A]\\n")
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    assert find_hardware().gpus == [pytest.approx(total / 2)]


@pytest.mark.parametrize(
    "allowed, expected",
    [
        ("1", [24.0]), ("1,0", [24.0, 80.0]), ("", []), ("-1", []), ("0,7,1", [80.0]), ("NoDevFiles", []),
        ("GPU-6c", [24.0]), ("GPU-6c11-bb, GPU-5f", [24.0, 80.0]), ("GPU-", []), ("GPU-77", []), ("MIG-aaaa-1", []),
    ],
)  # fmt: skip
def test_gpus_that_are_hidden_do_not_count(nvidia_smi: Smi, monkeypatch, allowed: str, expected: list[float]) -> None:
    nvidia_smi(CARDS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    assert find_hardware().gpus == expected


@pytest.mark.parametrize("allowed, expected", [(None, [10.0]), ("MIG-bbbb-2", [40.0]), ("MIG-cc", [])])
def test_a_slice_of_a_gpu_has_its_own_memory(nvidia_smi: Smi, monkeypatch, allowed, expected: list[float]) -> None:
    nvidia_smi(CARDS, listing=SLICES)
    if allowed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    assert find_hardware().gpus == expected


def test_hardware_is_described_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "hardware.json"
    path.write_text(json.dumps({"gpus": [{"memory_gib": 80}, {"memory_gib": 24.5}], "machines": 2}))
    assert read_hardware(path) == Hardware([80.0, 24.5], 2)
    path.write_text("{}")
    assert read_hardware(path) == Hardware()


def test_the_driver_is_named_or_unknown(nvidia_smi: Smi) -> None:
    assert driver_version() is None
    nvidia_smi("580.95.05\\n580.95.05\\n")
    assert driver_version() == "580.95.05"
    nvidia_smi("", code=9)
    assert driver_version() is None
