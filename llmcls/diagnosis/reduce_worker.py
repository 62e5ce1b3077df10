"""One process of the doctor's all-reduce: ``-m llmcls.diagnosis.reduce_worker BACKEND RANK PROCESSES PORT``."""

from __future__ import annotations

import json
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

# How long a process waits for the others, and how many float32 numbers they exchange.
PATIENCE = timedelta(seconds=60)
NUMBERS = {"nccl": 1 << 26, "gloo": 1 << 20}
REPETITIONS = 5


def main(argv: list[str]) -> None:
    """Add up numbers with the other processes, check the sum, and print the speed on rank 0.

    Raises
    ------
    RuntimeError
        If the sum is wrong, or the processes do not find each other.
    """
    backend, rank, processes, port = argv[0], int(argv[1]), int(argv[2]), int(argv[3])
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=processes, timeout=PATIENCE
    )
    numbers = torch.full((NUMBERS[backend],), float(rank + 1), device=device)
    dist.all_reduce(numbers)
    if not bool((numbers == processes * (processes + 1) / 2).all()):
        raise RuntimeError("the sum over all processes is wrong")
    start = time.perf_counter()
    for _ in range(REPETITIONS):
        dist.all_reduce(numbers)
    # Reading a number waits for the device.
    float(numbers[0])
    seconds = (time.perf_counter() - start) / REPETITIONS
    dist.destroy_process_group()
    if rank == 0:
        print(json.dumps({"gb_per_second": numbers.numel() * 4 / seconds / 1e9}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
