"""The GPUs of this machine.

Standard library only, because `launch/` uses it before anything is installed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

_KINDS: dict[type, str] = {
    list: "list",
    str: "text",
    int: "number",
    float: "number",
    bool: "truth value",
    type(None): "null",
}


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
    lines = _answer([command, "--query-gpu=uuid,memory.total", "--format=csv,noheader,nounits"]).splitlines()
    rows = [line.split(",") for line in lines if "," in line]
    cards = {uuid.strip(): _gib(memory.strip()) for uuid, memory in rows}
    return Hardware(_visible(cards, _slices(_answer([command, "-L"])), os.environ.get("CUDA_VISIBLE_DEVICES")))


def driver_version() -> str | None:
    """The version of the NVIDIA driver, as nvidia-smi says it; None if it says none."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    lines = _answer([command, "--query-gpu=driver_version", "--format=csv,noheader"]).splitlines()
    return lines[0].strip() or None if lines else None


def _answer(command: list[str]) -> str:
    """What a command prints; nothing if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    return "" if done.returncode else done.stdout


def _gib(text: str) -> float:
    """Memory in GiB from MiB as text. GPUs that share the memory of the machine report "[N/A]": then half of that."""
    try:
        return float(text) / 1024
    except ValueError:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
        return pages / 2**30 / 2


def _slices(listing: str) -> dict[str, float]:
    """Identifier to memory in GiB of the slices (MIG devices) that ``nvidia-smi -L`` lists, such as "MIG 1g.10gb"."""
    found = re.findall(r"MIG \S*?\.(\d+)gb.*\(UUID: (MIG-[^)]+)\)", listing)
    return {uuid: float(memory) for memory, uuid in found}


def _visible(cards: dict[str, float], slices: dict[str, float], allowed: str | None) -> list[float]:
    """The memory of the GPUs that CUDA shows a process.

    Parameters
    ----------
    cards, slices : dict
        Identifier to memory in GiB.
    allowed : str, optional
        ``CUDA_VISIBLE_DEVICES``: numbers, or the first letters of identifiers. CUDA stops at the first that it does not
        know; Slurm writes "NoDevFiles" for a job without GPUs.
    """
    if allowed is None:
        # A process sees one slice only.
        return list(slices.values())[:1] or list(cards.values())
    chosen: list[float] = []
    for name in allowed.split(","):
        name = name.strip()
        if name.isdigit():
            matching = list(cards.values())[int(name) :][:1]
        else:
            known = slices if name.startswith("MIG-") else cards
            matching = [memory for uuid, memory in known.items() if name and uuid.startswith(name)]
        if len(matching) != 1:
            break
        chosen += matching
    return chosen


def read_hardware(path: str | Path) -> Hardware:
    """Hardware from a JSON file: ``{"gpus": [{"memory_gib": 80}, ...], "machines": 2}``.

    Raises
    ------
    ValueError
        If the file cannot be read as such.
    """
    example = '{"gpus": [{"memory_gib": 80}], "machines": 2}'
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); write {example}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON; write {example}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path} holds a {_KINDS[type(raw)]}, not an object; write {example}")
    gpus, machines = raw.get("gpus", []), raw.get("machines", 1)
    if not isinstance(gpus, list) or not all(
        isinstance(gpu, dict) and _positive(gpu.get("memory_gib")) for gpu in gpus
    ):
        raise ValueError(f'{path}: "gpus" is not a list of objects with "memory_gib"; write {example}')
    if not _positive(machines) or machines != int(machines):
        raise ValueError(f'{path}: "machines" is not a whole number from 1; write {example}')
    return Hardware([float(gpu["memory_gib"]) for gpu in gpus], int(machines))


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
