"""Checks of the machine: system, memory, disk, and what the file system guarantees."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from pathlib import Path

import psutil

from llmcls.diagnosis.findings import Finding, Subject, fault, ok, warning

GIB = 2**30
# Free GiB below which a run may end in the middle, and below which models and checkpoints may not fit.
FULL, NEARLY_FULL = 1.0, 10.0
SMALL_MEMORY = 4.0


def system(subject: Subject) -> Finding:
    """Operating system, Python and cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    name = f"{platform.system()} {platform.release()} {platform.machine()}"
    found = f"{name}, Python {platform.python_version()}, {cores} core{'s' if cores > 1 else ''}"
    return ok(found, cores=cores, machine=platform.machine())


def memory(subject: Subject) -> Finding:
    """Main memory, swap, and the memory of GPUs, as far as it is free."""
    main, swap = psutil.virtual_memory(), psutil.swap_memory()
    total, free = main.total / GIB, main.available / GIB
    found = f"{total:.1f} GiB main memory ({free:.1f} free), {swap.total / GIB:.1f} GiB swap"
    details: dict[str, object] = {"main_gib": total, "free_gib": free, "swap_gib": swap.total / GIB}
    occupied = []
    cards = _gpu_memory()
    for number, (card_free, card_total) in enumerate(cards):
        found += f"; GPU {number}: {card_total:.1f} GiB ({card_free:.1f} free)"
        if card_free < 0.85 * card_total:
            occupied.append(str(number))
    details["gpus_gib"] = [card_total for _, card_total in cards]
    if occupied:
        return warning(
            found,
            f"other programs use GPU {', '.join(occupied)}; end them (nvidia-smi lists them), or hide the GPU with "
            "CUDA_VISIBLE_DEVICES",
            **details,
        )
    if free < SMALL_MEMORY:
        return warning(found, "close other programs: loading a model needs main memory too", **details)
    return ok(found, **details)


def _gpu_memory() -> list[tuple[float, float]]:
    """Free and total GiB of each GPU that torch sees."""
    import torch

    if not torch.cuda.is_available():
        return []
    sizes = [torch.cuda.mem_get_info(number) for number in range(torch.cuda.device_count())]
    return [(free / GIB, total / GIB) for free, total in sizes]


def disk(subject: Subject) -> Finding:
    """Free space where results, models and temporary files go."""
    from huggingface_hub.constants import HF_HUB_CACHE

    places = {
        "results": subject.output_root,
        "models": Path(HF_HUB_CACHE),
        "temporary files": Path(tempfile.gettempdir()),
    }
    free = {name: shutil.disk_usage(existing(place)).free / GIB for name, place in places.items()}
    found = ", ".join(f"{gib:.1f} GiB free for {name}" for name, gib in free.items())
    scarce = ", ".join(name for name, gib in free.items() if gib < NEARLY_FULL)
    advice = (
        f"free space for {scarce}, or move them: exp.output_root (results), HF_HOME (models), TMPDIR (temporary files)"
    )
    if min(free.values()) < FULL:
        return fault(found, advice, free_gib=free)
    if scarce:
        return warning(found, advice, free_gib=free)
    return ok(found, free_gib=free)


def existing(path: Path) -> Path:
    """A path, or the nearest folder above it that exists."""
    path = path.expanduser().absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def file_system(subject: Subject) -> Finding:
    """Whether files and folders can be replaced at once and written through to the disk where results go."""
    place = existing(subject.output_root)
    if not place.is_dir() or not os.access(place, os.W_OK):
        return fault(f"{place} cannot be written to", "set exp.output_root to a folder that you can write to")
    try:
        with tempfile.TemporaryDirectory(prefix=".llmcls-doctor-", dir=place) as folder:
            seconds = _replace_and_sync(Path(folder))
    except OSError as error:
        return fault(
            f"{place}: {error.strerror or error}",
            "checkpoints need a file system that renames and syncs; set exp.output_root to another one",
        )
    found = f"atomic rename and fsync work where results go ({1000 * seconds:.0f} ms)"
    if seconds > 2:
        return warning(found, "the file system is slow; set exp.output_root to a faster one", seconds=seconds)
    return ok(found, seconds=seconds)


def _replace_and_sync(folder: Path) -> float:
    """Replace a file and a folder by others, as checkpoints are; returns the seconds.

    Raises
    ------
    OSError
        If the file system does not do it.
    """
    start = time.perf_counter()
    target, new = folder / "file", folder / "file.partial"
    target.write_bytes(b"old")
    with new.open("wb") as file:
        file.write(b"new")
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, target)
    if target.read_bytes() != b"new" or new.exists():
        raise OSError("a renamed file has the content of the file that it replaced")
    first, second = folder / "folder", folder / "folder.partial"
    second.mkdir()
    (second / "file").write_bytes(b"new")
    os.replace(second, first)
    if (first / "file").read_bytes() != b"new":
        raise OSError("a renamed folder lost its content")
    return time.perf_counter() - start
