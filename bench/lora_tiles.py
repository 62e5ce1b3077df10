"""Find the tiles of the LoRA kernels on one GPU, for the layers of Llama-3.2-1B and 8,800 tokens.

    python bench/lora_tiles.py [--rank 8] [--tokens 8800]

For each kernel, the settings in the order of their time, summed over the four groups of layers that read the same
input. Beside it is the time that reading and writing the large tensors once takes at 2.8 TB/s, the rate of a copy on an
H100. The winners are the constants of `llmcls.model.lora_kernels`.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from triton.runtime.errors import OutOfResources  # noqa: E402

from llmcls.model import lora_kernels  # noqa: E402
from llmcls.model.lora_kernels import Tile  # noqa: E402

# Width of the input, and columns of the outputs.
GROUPS = {
    "q k v": (2048, (2048, 512, 512)),
    "o": (2048, (2048,)),
    "gate up": (2048, (8192,) * 2),
    "down": (8192, (2048,)),
}
# Rows, columns, warps and stages to try, and shares of the sums over rows.
CHOICES: dict[str, tuple[tuple[int, ...], ...]] = {
    "down": ((32, 64), (64, 128), (4, 8), (3, 4), (0,)),
    "up": ((64, 128), (128, 256), (4, 8), (1,), (0,)),
    "down_gradient": ((32, 64), (64, 128, 256), (4, 8), (3, 4), (0,)),
    "input_gradient": ((32, 64, 128), (64, 128, 256), (4, 8), (1,), (0,)),
    "matrix_gradients": ((64, 128), (32, 64, 128), (4, 8), (3, 4), (2, 4, 8)),
}
RATE, COPY = 0.05, 2.8e12


def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=dtype)


def calls(tokens: int, rank: int) -> dict[str, dict[str, tuple[Callable[[], Any], int]]]:
    """For each kernel and group, a call and the bytes of its large tensors."""
    found: dict[str, dict[str, tuple[Callable[[], Any], int]]] = {name: {} for name in CHOICES}
    for group, (width, columns) in GROUPS.items():
        x, a, b = random(tokens, width), random(rank * len(columns), width), [random(n, rank) for n in columns]
        low, d_outs = random(tokens, rank * len(columns)), [random(tokens, n) for n in columns]
        inputs, outputs = 2 * tokens * width, 2 * tokens * sum(columns)
        for name, call, size in (
            ("down", lambda x=x, a=a: lora_kernels.lora_down(x, a, 2.0, RATE, 2**40 + 1), inputs),
            ("up", lambda low=low, b=b: lora_kernels.lora_up(low, b), outputs),
            ("down_gradient", lambda d=d_outs, b=b: lora_kernels.lora_down_gradient(d, b, 2.0), outputs),
            ("input_gradient", lambda low=low, a=a: lora_kernels.lora_input_gradient(low, a, RATE, 2**40 + 1), inputs),
            (
                "matrix_gradients",
                lambda d=d_outs, low=low, x=x: lora_kernels.lora_matrix_gradients(d, low, x, low, RATE, 2**40 + 1),
                inputs + outputs,
            ),
        ):
            found[name][group] = call, size
    return found


def settings() -> Iterator[tuple[str, Tile, int]]:
    """Kernel, tile and shares."""
    for name, choices in CHOICES.items():
        for rows, columns, warps, stages, shares in itertools.product(*choices):
            yield name, Tile(rows, columns, warps, stages), shares


def choose(name: str, tile: Tile, shares: int) -> None:
    lora_kernels.TILES[name] = tile
    lora_kernels.SHARES = shares or lora_kernels.SHARES
    lora_kernels._tile.cache_clear()


def works(call: Callable[[], Any]) -> bool:
    """Whether the card has the memory that a setting needs in a processor."""
    try:
        call()
    except OutOfResources:
        return False
    return True


def microseconds(call: Callable[[], Any], repeats: int = 10) -> float:
    """Mean time of a call on the GPU, between events, so that the host does not count."""
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    # The GPU is busy while the host starts the calls.
    torch.cuda._sleep(2_000_000)
    first.record()
    for _ in range(repeats):
        call()
    last.record()
    last.synchronize()
    return 1000 * first.elapsed_time(last) / repeats


def main() -> None:
    """Compile in several processes, measure in this one, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=8800)
    parser.add_argument("--compile", type=int, help="only compile every so manieth setting, from --first on")
    parser.add_argument("--first", type=int, default=0)
    a = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no GPU is visible")
    if a.compile:
        small = calls(64, a.rank)
        for name, tile, shares in itertools.islice(settings(), a.first, None, a.compile):
            choose(name, tile, shares)
            for call, _ in small[name].values():
                works(call)
        return
    workers = max(1, (os.cpu_count() or 1) - 2)
    command = [sys.executable, __file__, "--rank", str(a.rank), "--compile", str(workers), "--first"]
    for process in [subprocess.Popen([*command, str(i)]) for i in range(workers)]:
        process.wait()
    real, found = calls(a.tokens, a.rank), []
    for name, tile, shares in settings():
        choose(name, tile, shares)
        times = [microseconds(call) if works(call) else float("inf") for call, _ in real[name].values()]
        found.append((name, sum(times), times, tile, shares))
    for name in CHOICES:
        least = sum(size for _, size in real[name].values()) / COPY * 1e6
        print(f"{name}: at least {least:.0f} us")
        for _, total, times, tile, shares in sorted(f for f in found if f[0] == name)[:5]:
            print(f"  {total:6.0f} us  {' '.join(f'{t:.0f}' for t in times)}  {tile}  {shares or ''}")


if __name__ == "__main__":
    main()
