"""The real optimizer step on fake CUDA tensors: devices, host synchronisations, and the optimizer state after a resume.

Fake tensors have shapes, types and devices, but no values. So this finds a tensor on the wrong device and a wait for
the GPU, but not the limits of a kernel or a wrong number.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fake_cuda.cases import CASES
from tests.helpers import ROOT

COMPILER = shutil.which("g++") or shutil.which("clang++")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.version.cuda is not None, reason="this build of torch has real CUDA tensors"),
    pytest.mark.skipif(sys.platform != "linux", reason="the device guard is built for Linux"),
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler was found to build the device guard"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Case to what the worker found."""
    guard = tmp_path_factory.mktemp("guard") / "guard.so"
    torch_folder = Path(torch.__file__).parent
    libraries = torch_folder / "lib"
    subprocess.run(
        [
            str(COMPILER), "-std=c++20", "-shared", "-fPIC", f"-I{torch_folder / 'include'}",
            str(Path(__file__).with_name("guard.cpp")), f"-L{libraries}", "-lc10", "-ltorch_cpu",
            f"-Wl,-rpath,{libraries}", "-o", str(guard),
        ],
        check=True,
    )  # fmt: skip
    command = [sys.executable, "-m", "tests.fake_cuda.worker", str(guard)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_is_on_the_gpu(results: dict[str, Any], case: str) -> None:
    found = results[case]
    assert "error" not in found, found["error"]
    assert found["micro-batches"] >= 3
    assert found["loss"] == "cuda"
    assert found["parameters with state"] == found["trained parameters"] > 0
    assert found["state"] == ["cuda"]


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_optimizer_has_its_state_where_the_fused_kernel_reads_it(results: dict[str, Any], case: str) -> None:
    assert results[case]["resumed state"] == ["cuda"]


@pytest.mark.parametrize("case", [case for case in CASES if "padded" not in case and case != "bert"])
def test_packed_micro_batches_never_wait_for_the_gpu(results: dict[str, Any], case: str) -> None:
    assert results[case]["synchronisations"] == {}


@pytest.mark.parametrize("case", ["llama padded", "bert"])
def test_padded_micro_batches_wait_once_in_the_mask_code_of_transformers(results: dict[str, Any], case: str) -> None:
    found = results[case]["synchronisations"]
    assert list(found.values()) == [results[case]["micro-batches"]]
    assert "masking_utils.py" in next(iter(found))
