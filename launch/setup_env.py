"""The virtual environment: made once, with torch first and pinned, remade when the pins change. Standard library."""

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


def venv_python() -> Path:
    """The interpreter of the project's environment, whether it exists or not."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def python_to_use() -> str:
    """The project's environment if it was set up, else the Python that runs this."""
    return str(venv_python()) if STAMP.exists() else sys.executable


def installed() -> bool:
    """Whether `python_to_use` has the packages: the project's environment, or the one of the user."""
    return STAMP.exists() or all(importlib.util.find_spec(name) for name in ("torch", "yaml", "accelerate"))


def set_up(gpu: bool) -> None:
    """Make `.venv` and install the pinned packages; does nothing when they are installed already.

    ``LLMCLS_TORCH_INDEX`` names the package index torch alone is taken from, for systems whose default
    index has no CUDA build (Windows).
    """
    pins = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("constraints.txt", "pyproject.toml"))
    index = os.environ.get("LLMCLS_TORCH_INDEX", "")
    digest = hashlib.sha256((pins + index).encode()).hexdigest()
    if STAMP.exists() and STAMP.read_text(encoding="utf-8") == digest:
        return
    if sys.version_info < (3, 11):  # noqa: UP036  (this file runs on whatever Python there is)
        sys.exit(f"error: Python 3.11 or newer is needed, this is {sys.version.split()[0]}; run this with a newer one")
    if not venv_python().exists():
        print(f"set-up: virtual environment -> {VENV}", flush=True)
        venv.create(VENV, with_pip=True)
    torch = re.search(r"^torch==.*$", pins, re.MULTILINE)
    assert torch is not None, "constraints.txt pins torch"
    print(f"set-up: {torch[0]}, then the other pinned packages (some minutes)", flush=True)
    _pip(torch[0].strip(), *(["--index-url", index] if index else []))
    # Without build isolation: DeepSpeed looks for the installed torch while it is built.
    _pip("setuptools", "wheel", "-c", "constraints.txt")
    _pip("-e", ".[all,test]", "-c", "constraints.txt", "--no-build-isolation")
    STAMP.write_text(digest, encoding="utf-8")
    if gpu and not _torch_has_cuda():
        print(
            "set-up: there is an NVIDIA GPU, but this build of torch cannot use it. Set LLMCLS_TORCH_INDEX to the\n"
            "        CUDA index that PyTorch's installation page names for your system, and run set-up again.",
            flush=True,
        )


def _pip(*arguments: str) -> None:
    command = [str(venv_python()), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, cwd=ROOT)
    if done.returncode:
        sys.exit(f"error: set-up stopped: `{' '.join(command[1:])}` failed; see pip's message above")


def _torch_has_cuda() -> bool:
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([str(venv_python()), "-c", code]).returncode == 0
