"""Where the time of a training step goes on one GPU: on the host, and in which kernels.

    python bench/gpu_step.py [--steps 12] [--micro-batch-tokens 16384] [--four-bit] [--kernels 30]

The step is that of `bench/gpu.py`: the shape of Llama-3.2-1B, LoRA r 8, 32 texts of lognormal lengths. Three times are
printed: that of a step; that of a step of 32 texts of 8 tokens, which leave the GPU idle, so that it is the time that
the host needs; and that of all kernels of a step. Where the first is near the second, the host is the limit; where it
is near the third, the GPU is. Nothing is written to bench/results.md. Without a GPU, a tiny shape shows that it works.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.autograd import DeviceType  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from bench.gpu import make_race, start_training, write_model  # noqa: E402

SHORT, ROUNDS = 8, 4


def kernel_table(epoch: Callable[[int], float], steps: int, most: int) -> list[str]:
    """The time of all kernels of a step, and those that take longest."""
    on_gpu = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as found:
        epoch(ROUNDS + 1)

    def microseconds(event: Any) -> float:
        return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total)

    # What the host calls to start kernels is listed too.
    own = DeviceType.CUDA if on_gpu else DeviceType.CPU
    events = [event for event in found.key_averages() if event.device_type == own]
    events.sort(key=microseconds, reverse=True)
    total, count = sum(map(microseconds, events)), sum(event.count for event in events)
    lines = [f"kernels: {total / 1000 / steps:.1f} ms a step, {count / steps:.0f} of them"]
    for event in events[:most]:
        each = f"{event.count / steps:7.1f} x {microseconds(event) / event.count:8.1f} us"
        lines.append(f"{microseconds(event) / 1000 / steps:8.3f} ms  {each}  {event.key[:100]}")
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps of an epoch")
    parser.add_argument("--micro-batch-tokens", type=int, default=16384)
    parser.add_argument("--four-bit", action="store_true")
    parser.add_argument("--kernels", type=int, default=30, help="kernels to print")
    a = parser.parse_args()
    shape = "1B" if torch.cuda.is_available() else "tiny"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "base", shape)
        race = make_race(folder, shape, a.four_bit, a.steps, a.micro_batch_tokens)
        training = start_training(race)
        texts, short = (
            partial(training.epoch, training.setup(tokens))
            for tokens in (race.tokens, [np.full(SHORT, 7, dtype=np.int32) for _ in race.tokens])
        )
        for words, epoch in (("a step", texts), (f"a step of texts of {SHORT} tokens, for the host", short)):
            epoch(0)
            times = [f"{1000 * epoch(number) / a.steps:.1f}" for number in range(1, ROUNDS)]
            print(f"{words}: {', '.join(times)} ms in {len(times)} epochs of {a.steps} steps", flush=True)
        print("\n".join(kernel_table(texts, a.steps, a.kernels)))


if __name__ == "__main__":
    main()
