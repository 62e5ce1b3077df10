"""What the tests on a GPU share: distances, random numbers and models, and a watch for waits of the host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmcls.datasets.products import make_corpus
from llmcls.model.tiny import train_tokenizer

try:
    import triton

    from llmcls.model import lora_kernels, triton_kernels
except ModuleNotFoundError:
    # Without a GPU, no test uses it.
    triton = lora_kernels = triton_kernels = None


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers, float32 on the CPU."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest expected value; a NaN if there is one."""
    found, expected = found.detach().float().cpu(), expected.detach().float().cpu()
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


def compiled_kernels() -> int:
    """How many variants of the formulas' kernels this process has compiled."""
    named = [*vars(triton_kernels).values(), *vars(lora_kernels).values()]
    kernels = [value for value in named if isinstance(value, triton.JITFunction)]
    return sum(len(caches[0]) for kernel in kernels for caches in kernel.device_caches.values())


@contextmanager
def no_waiting() -> Iterator[None]:
    """Within this context, an operation for which the host waits for the GPU raises a RuntimeError."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def write_model(folder: Path, kind: str, dtype: torch.dtype = torch.bfloat16, **sizes: Any) -> str:
    """Save a decoder with random weights and a tokenizer of 300 pieces; returns the folder."""
    tokenizer = train_tokenizer(make_corpus(50, 0), 300)
    config = AutoConfig.for_model(kind, pad_token_id=0, **({"vocab_size": 300} | sizes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
