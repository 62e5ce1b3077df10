"""The GPUs of this machine.

Standard library only, because `launch/` uses it before anything is installed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Hardware:
    """GPUs of one machine by memory in GiB, and the number of machines."""

    gpus: list[float] = field(default_factory=list)
    machines: int = 1


def find_hardware() -> Hardware:
    """The NVIDIA GPUs of nvidia-smi that ``CUDA_VISIBLE_DEVICES`` allows; none if nvidia-smi is missing or fails."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return Hardware()
    query = [command, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True)
    if done.returncode:
        return Hardware()
    sizes = [_gib(line.strip()) for line in done.stdout.split("\n") if line.strip()]
    return Hardware(_visible(sizes, os.environ.get("CUDA_VISIBLE_DEVICES")))


def _gib(text: str) -> float:
    """Memory in GiB from MiB as text. GPUs that share the memory of the machine report "[N/A]": then half of that."""
    try:
        return float(text) / 1024
    except ValueError:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
        return pages / 2**30 / 2


def _visible(sizes: list[float], allowed: str | None) -> list[float]:
    """The GPUs that ``CUDA_VISIBLE_DEVICES`` leaves: by number up to the first missing one, or by identifier."""
    if allowed is None:
        return sizes
    names = [name.strip() for name in allowed.split(",") if name.strip()]
    chosen = []
    for position, name in enumerate(names):
        number = int(name) if name.lstrip("-").isdigit() else position
        if not 0 <= number < len(sizes):
            break
        chosen.append(sizes[number])
    return chosen


def read_hardware(path: str | Path) -> Hardware:
    """Hardware from a JSON file: ``{"gpus": [{"memory_gib": 80}, ...], "machines": 2}``.

    Raises
    ------
    ValueError
        If the file cannot be read as such.
    """
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
        return Hardware([float(gpu["memory_gib"]) for gpu in raw.get("gpus", [])], int(raw.get("machines", 1)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        example = '{"gpus": [{"memory_gib": 80}], "machines": 2}'
        raise ValueError(f"{path} cannot be read as hardware ({type(error).__name__}); write {example}") from error
