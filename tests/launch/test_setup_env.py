from __future__ import annotations

import importlib.util
import json
import os
import stat
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.helpers import ROOT

PIN = "torch==2.13.0"
UNINSTALL = ["-m", "pip", "uninstall", "--quiet", "--yes", "torch"]


@pytest.fixture
def setup_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """launch/setup_env.py with an environment whose Python writes down how it is called."""
    spec = importlib.util.spec_from_file_location("setup_env_under_test", ROOT / "launch" / "setup_env.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        "call = {'arguments': sys.argv[1:], 'environment': dict(os.environ)}\n"
        f"open({str(tmp_path / 'calls.jsonl')!r}, 'a').write(json.dumps(call) + '\\n')\n"
        "sys.exit('fail' in os.environ.get('FAKE_PYTHON', ''))\n",
        encoding="utf-8",
    )
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(module, "STAMP", tmp_path / ".venv" / "llmcls-installed")
    monkeypatch.delenv("LLMCLS_TORCH_INDEX", raising=False)
    return module


def calls(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.skipif(os.name == "nt", reason="the fake interpreter is a script for Linux and macOS")
def test_torch_comes_first_then_the_rest_and_nothing_is_installed_twice(setup_env: ModuleType, tmp_path: Path) -> None:
    setup_env.set_up(gpu=False)
    installed = [call["arguments"] for call in calls(tmp_path)]
    assert installed[0][-1].startswith("torch==")
    assert installed[-1][-5:] == ["-e", ".[all,test,docs]", "-c", "constraints.txt", "--no-build-isolation"]
    assert setup_env.installed()
    setup_env.set_up(gpu=False)
    assert len(calls(tmp_path)) == len(installed)


@pytest.mark.skipif(os.name == "nt", reason="the fake interpreter is a script for Linux and macOS")
def test_deepspeed_is_installed_on_a_gpu_machine_without_the_cuda_toolkit(
    setup_env: ModuleType, tmp_path: Path
) -> None:
    # Its set-up ends with MissingCUDAException there, unless it is told not to look for the toolkit.
    setup_env.set_up(gpu=True)
    found = [c for c in calls(tmp_path) if ".[all,test,docs]" in c["arguments"]]
    assert [call["environment"].get("DS_IGNORE_CUDA_DETECTION") for call in found] == ["1"]


@pytest.mark.skipif(os.name == "nt", reason="the fake interpreter is a script for Linux and macOS")
def test_a_failed_installation_stops_and_is_repeated(setup_env: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_PYTHON", "fail")
    with pytest.raises(SystemExit, match="error: set-up stopped"):
        setup_env.set_up(gpu=False)
    assert not setup_env.STAMP.exists()


def test_a_cuda_index_replaces_the_cpu_build_of_the_same_version(setup_env: ModuleType) -> None:
    # pip would keep it: 2.13.0+cpu satisfies ==2.13.0.
    remove, install = setup_env.torch_commands(PIN, "https://index.example/cu130", gpu=True, windows=False)
    assert remove == UNINSTALL
    assert install[-3:] == [PIN, "--index-url", "https://index.example/cu130"]


def test_on_windows_with_a_gpu_uv_chooses_the_build(setup_env: ModuleType) -> None:
    get_uv, remove, install = setup_env.torch_commands(PIN, "", gpu=True, windows=True)
    assert get_uv[-1] == "uv"
    assert remove == UNINSTALL
    assert install[:4] == ["-m", "uv", "pip", "install"]
    assert install[-2:] == ["--torch-backend=auto", PIN]


@pytest.mark.parametrize("windows", [True, False])
def test_without_a_gpu_the_default_index_is_used(setup_env: ModuleType, windows: bool) -> None:
    (install,) = setup_env.torch_commands(PIN, "", gpu=False, windows=windows)
    assert install[-1] == PIN
    assert "--index-url" not in install
