"""Keeping freed memory in the process, for training and prediction on a CPU.

A pass allocates and frees tensors of some megabytes in every layer. The C library of Linux gives large ones back to the
system when they are freed, and the system clears each page when it is written again, which takes a twentieth of the
time of a pass.
"""

from __future__ import annotations

import ctypes
import platform

# Parameters of mallopt(3).
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
# Larger blocks than these are the system's business; 32 MiB is the most that mallopt accepts.
MAPPED_FROM = 32 << 20
# Free memory at the end of the heap that is kept.
KEPT = 1 << 30


def keep_freed_memory() -> bool:
    """Keep up to `KEPT` bytes of freed memory in the process; True if the C library does so.

    Only glibc is asked, that of Linux; other systems have other allocators.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(MMAP_THRESHOLD, MAPPED_FROM)) and bool(mallopt(TRIM_THRESHOLD, KEPT))
