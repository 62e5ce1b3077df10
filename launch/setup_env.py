"""Set up the virtual environment with the pinned packages; repeated when the pins change. Standard library only."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "llmcls-installed"
PIP_INSTALL = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


def venv_python() -> Path:
    """The interpreter of the environment of the project, which may not exist yet."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def python_to_use() -> str:
    """The interpreter of the environment of the project if it was set up, otherwise the current one."""
    return str(venv_python()) if STAMP.exists() else sys.executable


def installed() -> bool:
    """Whether `python_to_use` has the required packages."""
    return STAMP.exists() or all(importlib.util.find_spec(name) for name in ("torch", "yaml", "accelerate"))


def set_up(gpu: bool) -> None:
    """Create `.venv` and install the pinned packages, unless they are installed already.

    The environment variable ``LLMCLS_TORCH_INDEX`` is the package index for torch only, for systems whose default index
    has no CUDA build. On Windows with a GPU, uv finds the build that fits the driver.

    Parameters
    ----------
    gpu : bool
        Whether the machine has an NVIDIA GPU; then print a hint if torch cannot use it.
    """
    pins = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("constraints.txt", "pyproject.toml"))
    index = os.environ.get("LLMCLS_TORCH_INDEX", "")
    digest = hashlib.sha256((pins + index).encode()).hexdigest()
    if STAMP.exists() and STAMP.read_text(encoding="utf-8") == digest:
        return
    if sys.version_info < (3, 11):  # noqa: UP036  (runs on the Python of the user)
        sys.exit(f"error: this is Python {sys.version.split()[0]}, but 3.11 is required; run this with a newer Python")
    if not venv_python().exists():
        print(f"set-up: virtual environment -> {VENV}", flush=True)
        venv.create(VENV, with_pip=True)
    torch = re.search(r"^torch==.*$", pins, re.MULTILINE)
    assert torch is not None, "constraints.txt pins torch"
    print(f"set-up: {torch[0]}, then the other pinned packages (some minutes)", flush=True)
    for command in torch_commands(torch[0].strip(), index, gpu, os.name == "nt"):
        _run(command)
    # Without build isolation, because the build of DeepSpeed needs the installed torch.
    _pip("setuptools", "wheel", "-c", "constraints.txt")
    _pip("-e", ".[all,test,docs]", "-c", "constraints.txt", "--no-build-isolation")
    STAMP.write_text(digest, encoding="utf-8")
    if gpu and not _torch_has_cuda():
        print(
            "set-up: there is an NVIDIA GPU, but the installed torch cannot use it. Set LLMCLS_TORCH_INDEX to the\n"
            "        CUDA index for your system from PyTorch's installation page, and run set-up again.",
            flush=True,
        )


def torch_commands(pin: str, index: str, gpu: bool, windows: bool) -> list[list[str]]:
    """The commands that install torch, as arguments of the environment's Python.

    Parameters
    ----------
    pin : str
        Such as "torch==2.13.0".
    index : str
        A package index for torch only, or "".
    gpu, windows : bool
        Whether the machine has an NVIDIA GPU, and whether it runs Windows.
    """
    # A CPU build satisfies the same pin, so pip would keep it: remove it first.
    remove = ["-m", "pip", "uninstall", "--quiet", "--yes", "torch"]
    if index:
        return [remove, [*PIP_INSTALL, pin, "--index-url", index]]
    if gpu and windows:
        # The default index has only CPU builds for Windows. uv chooses the build that fits the driver.
        uv = ["-m", "uv", "pip", "install", "--quiet", "--python", str(venv_python()), "--torch-backend=auto", pin]
        return [[*PIP_INSTALL, "uv"], remove, uv]
    return [[*PIP_INSTALL, pin]]


def _pip(*arguments: str) -> None:
    """Run ``pip install`` in the environment; exit with an error if it fails."""
    _run([*PIP_INSTALL, *arguments])


def _run(arguments: list[str]) -> None:
    """Run the environment's Python; exit with an error if it fails."""
    # DeepSpeed's set-up stops if it sees a GPU but no CUDA toolkit, which only its compiled kernels need.
    environment = os.environ | {"DS_IGNORE_CUDA_DETECTION": "1"}
    done = subprocess.run([str(venv_python()), *arguments], cwd=ROOT, env=environment)
    if done.returncode:
        sys.exit(f"error: set-up stopped: `python {' '.join(arguments)}` failed; see the message above")


def _torch_has_cuda() -> bool:
    """Whether the torch of the environment can use a GPU."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([str(venv_python()), "-c", code]).returncode == 0
