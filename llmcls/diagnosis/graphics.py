"""Checks of the NVIDIA driver, and of the build of torch against it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from llmcls.diagnosis.findings import Finding, Subject, fault, ok, skipped, warning

SECONDS = 30
# Where Linux lists what is on the bus, the number of the vendor, and how the class of a graphics card begins.
PCI, NVIDIA, GRAPHICS = Path("/sys/bus/pci/devices"), "0x10de", "0x03"
INSTALL_TORCH = (
    "install the build for your driver: run `pip install uv`, then `uv pip install torch --torch-backend=auto`"
    " (or set LLMCLS_TORCH_INDEX and run `python launch/run.py setup`)"
)


@dataclass(frozen=True)
class Driver:
    """What nvidia-smi says.

    Attributes
    ----------
    version : str
    cuda : tuple of int, optional
        The newest version of CUDA that the driver supports.
    cards : list of str
        Name and memory of each card.
    """

    version: str
    cuda: tuple[int, int] | None
    cards: list[str]


def find_driver() -> Driver | str | None:
    """The NVIDIA driver of this machine; None without one, or an error in words."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = [command, "--query-gpu=driver_version,name,memory.total", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=SECONDS)
        summary = subprocess.run([command], capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi does not answer ({type(error).__name__})"
    rows = [row.split(", ") for row in listed.stdout.splitlines() if row.count(", ") >= 2]
    if listed.returncode or not rows:
        said = (listed.stdout + listed.stderr).strip().splitlines()
        return f"nvidia-smi finds no card: {said[0][:160] if said else f'exit code {listed.returncode}'}"
    cuda = re.search(r"CUDA[^|:]*Version:\s*(\d+)\.(\d+)", summary.stdout)
    cards = [f"{', '.join(row[1:-1])} ({row[-1]})" for row in rows]
    return Driver(rows[0][0], (int(cuda[1]), int(cuda[2])) if cuda else None, cards)


def card_without_driver() -> bool:
    """Whether Linux sees a graphics card of NVIDIA on the bus."""
    for device in PCI.glob("*"):
        vendor, kind = (device / name for name in ("vendor", "class"))
        if vendor.is_file() and vendor.read_text().strip() == NVIDIA and kind.read_text().startswith(GRAPHICS):
            return True
    return False


def driver(subject: Subject) -> Finding:
    """The NVIDIA driver and its cards."""
    found = find_driver()
    if found is None and card_without_driver():
        return warning(
            "there is an NVIDIA card, but no driver (nvidia-smi was not found)", "install the driver of the card"
        )
    if found is None:
        return skipped("no NVIDIA driver (nvidia-smi was not found)")
    if isinstance(found, str):
        return fault(found, "install the driver of the card again, and restart the machine")
    newest = f", CUDA up to {found.cuda[0]}.{found.cuda[1]}" if found.cuda else ""
    words = f"driver {found.version}{newest}: {', '.join(found.cards)}"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not any(name.strip().lstrip("-").isalnum() for name in visible.split(",")):
        return warning(f"{words}; CUDA_VISIBLE_DEVICES is empty and hides them", "unset CUDA_VISIBLE_DEVICES")
    return ok(words, driver=found.version, cuda=found.cuda, cards=found.cards)


def torch_build(subject: Subject) -> Finding:
    """Whether this build of torch can use the cards of this machine."""
    import torch

    card, build = find_driver(), torch.version.cuda
    name = f"torch {torch.__version__}"
    details: dict[str, object] = {"torch": str(torch.__version__), "cuda": build, "hip": torch.version.hip}
    if torch.version.hip is None and isinstance(card, Driver):
        if build is None:
            return fault(f"{name} is a CPU build, but there is a {card.cards[0]}", INSTALL_TORCH, **details)
        if not torch.cuda.is_available():
            if os.environ.get("CUDA_VISIBLE_DEVICES") is not None:
                return warning(
                    f"{name} for CUDA {build} sees no GPU with CUDA_VISIBLE_DEVICES="
                    f"{os.environ['CUDA_VISIBLE_DEVICES']!r}",
                    "unset it to use the GPU",
                    **details,
                )
            newest = "an older CUDA" if card.cuda is None else f"CUDA up to {card.cuda[0]}.{card.cuda[1]}"
            return fault(
                f"{name} is built for CUDA {build} and cannot use the card; driver {card.version} supports {newest}",
                f"update the driver, or {INSTALL_TORCH}",
                **details,
            )
    if torch.cuda.is_available():
        return _cuda(subject, name, details)
    backend = "Apple's GPU (mps)" if torch.backends.mps.is_available() else "the CPU"
    return ok(f"{name}, computes on {backend}", **details)


def _cuda(subject: Subject, name: str, details: dict[str, object]) -> Finding:
    """Whether torch has kernels for each GPU, tried by a sum."""
    import torch

    kernels = torch.cuda.get_arch_list()
    for number in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(number)
        card = torch.cuda.get_device_name(number)
        if torch.version.hip is None and not has_kernels(capability, kernels):
            return fault(
                f"{name} has no kernels for {card} (sm_{capability[0]}{capability[1]}; it has {', '.join(kernels)})",
                INSTALL_TORCH,
                **details,
            )
        if float(torch.ones(1000, device=f"cuda:{number}").sum()) != 1000.0:
            return fault(
                f"GPU {number} ({card}) computes a wrong sum", "the card or its memory may be broken", **details
            )
    found = f"{name} for CUDA {torch.version.cuda}, {torch.cuda.device_count()} GPU(s)"
    wanted = subject.recipe.model.torch_dtype if subject.recipe else "bfloat16"
    if wanted == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return warning(
            f"{found}, which compute bfloat16 only by emulation",
            "set model.torch_dtype=float16, which this card computes faster",
            **details,
        )
    return ok(found, **details, kernels=kernels)


def has_kernels(capability: tuple[int, int], kernels: list[str]) -> bool:
    """Whether a build has code for a card.

    Parameters
    ----------
    capability : tuple of int
        Compute capability of the card, such as (8, 9).
    kernels : list of str
        What the build was made for, as in `torch.cuda.get_arch_list`.

    Notes
    -----
    Machine code (``sm_86``) runs on cards of the same major version and the same or a higher minor one. Portable code
    (``compute_120``) is translated for any later card (CUDA C++ Programming Guide, "Application Compatibility").

    Examples
    --------
    >>> has_kernels((8, 9), ["sm_80", "sm_90"]), has_kernels((7, 0), ["sm_75", "sm_80"])
    (True, False)
    """
    for kernel in kernels:
        kind, _, number = kernel.partition("_")
        digits = re.match(r"\d+", number)
        if digits is None:
            continue
        made_for = divmod(int(digits[0]), 10)
        exact = made_for[0] == capability[0] and made_for[1] <= capability[1]
        if exact if kind == "sm" else made_for <= capability:
            return True
    return False
