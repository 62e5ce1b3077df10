"""The GPUs of this machine.

Standard library only, because `launch/` uses it before anything is installed.
"""

from __future__ import annotations

import json
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
    """The NVIDIA GPUs that nvidia-smi reports; none if it is missing or fails."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return Hardware()
    query = [command, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True)
    if done.returncode:
        return Hardware()
    return Hardware([float(line) / 1024 for line in done.stdout.split("\n") if line.strip()])


def read_hardware(path: str | Path) -> Hardware:
    """Hardware from a JSON file: ``{"gpus": [{"memory_gib": 80}, ...], "machines": 2}``."""
    raw = json.loads(Path(path).read_text(encoding="utf-8"))
    return Hardware([float(gpu["memory_gib"]) for gpu in raw.get("gpus", [])], int(raw.get("machines", 1)))
