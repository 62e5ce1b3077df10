"""Trace a training step of the shape of Llama-3.2-1B on an H100, without a GPU: time, ceiling, memory and kernels.

    python bench/trace.py [--tokens 16384]

The step is that of `llmcls.train`: LoRA r 8 on every linear layer, bf16, one packed micro-batch of texts of lognormal
lengths (mean 300, sigma 0.9, at most 1,024 tokens). `llmcls.model.step_trace` runs it under fake tensors, and a
roofline gives the time: each kernel takes as long as its arithmetic at 700 TFLOP/s or its traffic at 0.85 x 3.35 TB/s,
which is what large kernels reach on this card. Nothing is measured: real kernels are slower than the roofline.

The ceiling is the share of 700 TFLOP/s that the useful operations of the step reach at best: matrix products and
attention, forward and backward as LoRA needs them, without recomputation. What the last layer skips does not count.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from transformers import LlamaConfig  # noqa: E402

from bench.material import write_section  # noqa: E402
from llmcls.model.cards import Card  # noqa: E402
from llmcls.model.memory import GIB  # noqa: E402
from llmcls.model.step_trace import MicroBatch, StepTracer  # noqa: E402
from llmcls.recipe.schema import DataSection, ExpSection, ModelSection, Recipe, TrainSection  # noqa: E402

H100 = Card("H100", gib=80, bandwidth=0.85 * 3.35e12, sixteen_bits=700e12, float32=67e12)
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "kernels off": ({}, {"kernels": "off"}),
    "kernels off, dropout 0": ({"lora_dropout": 0.0}, {"kernels": "off"}),
    "kernels auto": ({}, {}),
    "kernels auto, dropout 0": ({"lora_dropout": 0.0}, {}),
    "kernels auto, 4-bit": ({"use_4bit": True}, {"gradient_checkpointing": False}),
    "kernels auto, 4-bit, recomputed": ({"use_4bit": True}, {"gradient_checkpointing": True}),
}


def one_billion() -> LlamaConfig:
    """The shape of Llama-3.2-1B, with ten labels."""
    return LlamaConfig(
        hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, head_dim=64,
        intermediate_size=8192, vocab_size=128256, tie_word_embeddings=True, max_position_embeddings=131072,
        pad_token_id=0, num_labels=10,
    )  # fmt: skip


def lognormal_lengths(tokens: int) -> tuple[int, ...]:
    """Lengths of mean 300 and sigma 0.9, at most 1,024, with this sum."""
    generator, lengths = np.random.default_rng(0), list[int]()
    while sum(lengths) < tokens:
        length = generator.lognormal(np.log(300) - 0.9**2 / 2, 0.9)
        lengths.append(int(min(max(length, 1), 1024, tokens - sum(lengths))))
    return tuple(lengths)


def main() -> None:
    """Trace every variant, print a table and write it to bench/results.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16384, help="tokens of the micro-batch")
    arguments = parser.parse_args()
    batch = MicroBatch(lognormal_lengths(arguments.tokens))
    lines = [
        "A step of the shape of Llama-3.2-1B, LoRA r 8 on every linear layer, bf16, dropout 0.05, "
        f"{batch.tokens:,} tokens",
        f"in {len(batch.lengths)} packed texts, traced under fake tensors on a CPU. The time is that of a roofline",
        "of an H100 (700 TFLOP/s, 0.85 x 3.35 TB/s). **It is a limit, not a measurement.** `kernels off` are the",
        "modules of transformers and peft. (`bench/trace.py`)",
        "",
        "| variant | ms | ceiling | peak GiB | kernels a layer |",
        "|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    for name, (model, train) in VARIANTS.items():
        start = time.perf_counter()
        recipe = Recipe(
            DataSection("d", "train.csv", []),
            ModelSection("1B", lora_r=8, **model),
            TrainSection(**train),
            ExpSection(),
        )
        cost = StepTracer(recipe, one_billion()).cost(batch)
        seconds = H100.seconds(cost.kernels)
        ceiling = cost.useful_flops / (seconds * H100.sixteen_bits)
        row = f"| {name} | {seconds * 1e3:.0f} | {ceiling:.0%} | {cost.peak / GIB:.1f} | "
        lines.append(f"{row}{cost.kernel_count / cost.layers:.0f} |")
        print(lines[-1], f"  (traced in {time.perf_counter() - start:.1f} s)", flush=True)
    write_section("Trace", lines)


if __name__ == "__main__":
    main()
