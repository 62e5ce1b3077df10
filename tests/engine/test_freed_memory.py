from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Frees tensors of 480 MiB in all, and prints how many MiB the process has more than before.
PROGRAM = """
import sys, torch
if sys.argv[1] == "kept":
    from llmcls.engine.freed_memory import keep_freed_memory
    assert keep_freed_memory()
def mebibytes():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20
torch.ones(2**20)
before = mebibytes()
tensors = [torch.ones(6 * 2**20) for _ in range(20)]
del tensors
print(mebibytes() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_stays_in_the_process() -> None:
    more = {
        kind: int(subprocess.run([sys.executable, "-c", PROGRAM, kind], capture_output=True, check=True).stdout)
        for kind in ("given back", "kept")
    }
    assert more["given back"] < 240 < more["kept"]


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmcls.engine.freed_memory import keep_freed_memory

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
