"""Measure speed and memory on one GPU with the shapes of Llama-3.2-1B and Llama-3.1-8B and random weights.

    python bench/gpu.py [--shapes 1B 8B] [--steps 20]

Texts have lognormal lengths (mean 300, sigma 0.9, at most 1,024 tokens). For bf16 LoRA and 4-bit LoRA, the script
reports texts/s, tokens/s, peak memory, and model FLOP utilisation relative to a matrix multiplication that it times:

    LoRA training   4 N T + 4 x 2 L h sum(l^2) / 2      N body weights, T tokens, L layers, h width, l text lengths
    prediction      2 N T + 2 x 2 L h sum(l^2) / 2

A token takes 2 N in the forward pass and 2 N for the gradients of the inputs; gradients of frozen weights are not
computed. Causal attention takes half of 2 x 2 l^2 h per layer in the forward pass. Recomputation is not counted.
Without a GPU, the script runs with a tiny shape on the CPU, to show that it works, and writes nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from bench.material import machine, write_section  # noqa: E402

SHAPES: dict[str, dict[str, Any]] = {
    "1B": dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, head_dim=64),
    "8B": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, head_dim=128),
    "tiny": dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, head_dim=16),
}
LABELS = 10


def write_model(folder: Path, shape: str) -> None:
    """Write a random model of a shape, in bf16, and a tokenizer."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from llmcls.datasets.products import make_corpus
    from llmcls.model.tiny import train_tokenizer

    small = shape == "tiny"
    config = LlamaConfig(
        **SHAPES[shape], num_key_value_heads=2 if small else 8, vocab_size=1024 if small else 128256,
        max_position_embeddings=8192, pad_token_id=0, num_labels=LABELS,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = LlamaForSequenceClassification(config)
    finally:
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    train_tokenizer(make_corpus(200, 0)).save_pretrained(folder)


def measure_matmul(device: torch.device) -> float:
    """Measure the FLOP/s of a large bf16 matrix multiplication."""
    side = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    synchronize(device)
    start = time.perf_counter()
    for _ in range(10):
        a @ b
    synchronize(device)
    return 10 * 2 * side**3 / (time.perf_counter() - start)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(folder: Path, four_bit: bool, steps: int, cap: int, budget: int) -> dict[str, float]:
    """Measure training and prediction.

    Parameters
    ----------
    folder : Path
        With the model in ``base``.
    four_bit : bool
        Whether to store the frozen weights in 4 bits.
    steps : int
        Timed optimizer steps of 32 texts, after three steps to warm up.
    cap : int
        Maximum number of tokens per text.
    budget : int
        Tokens of a micro-batch.

    Returns
    -------
    dict
        "texts", "tokens" and "squares" (of the text lengths) per second in training, the same in prediction with the
        prefix "predicted", "peak" memory in GiB, "body" weights (0 in 4-bit), and whether the model "packs".
    """
    from llmcls.data.batches import plan_epoch
    from llmcls.data.labels import LabelSpace
    from llmcls.data.splits import Split
    from llmcls.engine.accelerator import open_accelerator, unwrapped
    from llmcls.evaluation.scoring import make_scorer, score_split
    from llmcls.model.build import build_classifier
    from llmcls.recipe.load import load_recipe
    from llmcls.results.run_folder import RunFolder
    from llmcls.training.loop import collated, optimizer_step
    from llmcls.training.optimizer import build_optimizer
    from llmcls.training.setup import TrainingSetup

    recipe_file = folder / "recipe.yaml"
    recipe_file.write_text(
        f"data: {{dataset_name: lognormal, target_text_column: text, train_csv: none.csv, max_length: {cap},\n"
        f"  label_columns: [{', '.join(f'l{i}' for i in range(LABELS))}]}}\n"
        f"model: {{model_name: {folder / 'base'}, use_4bit: {str(four_bit).lower()}, lora_r: 8}}\n"
        f"train: {{batch_size: 4, gradient_accumulation_steps: 8, micro_batch_tokens: {budget}, report_to: [],\n"
        "  gradient_checkpointing: false}\n",
        encoding="utf-8",
    )
    recipe = load_recipe(recipe_file)
    accelerator = open_accelerator(recipe)
    device = accelerator.device
    rng = np.random.default_rng(0)
    mean, sigma = 300 * cap / 1024, 0.9
    count = 32 * (steps + 3)
    lengths = rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, count).clip(8, cap).astype(np.int32)
    tokens = [rng.integers(5, 900, length, dtype=np.int32) for length in lengths]
    values = (rng.random((count, LABELS)) < 0.2).astype(np.float32)
    split = Split("train", "none.csv", tokens, lengths, values, None)
    labels = LabelSpace(recipe.data.label_columns, recipe.data.label_columns, "multi_label_classification")
    torch.manual_seed(0)
    model = build_classifier(recipe, labels, device)
    body = sum(p.numel() for n, p in model.named_parameters() if "layers" in n and "lora" not in n and not four_bit)
    optimizer = build_optimizer(model, recipe, device)
    model, optimizer = accelerator.prepare(model, optimizer)
    packed = unwrapped(model).packs
    setup = TrainingSetup(recipe, 0, RunFolder(folder), accelerator, labels, split, None, 32, packed, budget)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    model.train()
    done = 0
    with collated(setup, plan_epoch(lengths, setup.batches, 0, 0), 0) as steps:
        for number, (step, batches) in enumerate(steps):
            if number == 3:
                synchronize(device)
                start = time.perf_counter()
                timed = np.zeros(0, dtype=np.int64)
            optimizer_step(setup, model, optimizer, step, batches, number)
            if number >= 3:
                done += step.rows
                timed = np.concatenate([timed, *step.micro_batches[0]])
    synchronize(device)
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else float("nan")
    scorer = make_scorer(accelerator, model, labels, 0, recipe)
    score_split(scorer, split)
    synchronize(device)
    start = time.perf_counter()
    score_split(scorer, split)
    predicting = time.perf_counter() - start
    accelerator.free_memory()
    return {
        "texts": done / seconds, "tokens": lengths[timed].sum() / seconds, "peak": peak, "body": float(body),
        "squares": float((lengths[timed].astype(float) ** 2).sum()) / seconds, "predicted": count / predicting,
        "predicted_tokens": lengths.sum() / predicting,
        "predicted_squares": float((lengths.astype(float) ** 2).sum()) / predicting, "packs": float(packed),
    }  # fmt: skip


def main() -> None:
    """Measure, print the table, and write it if a GPU was measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=["1B", "8B"], default=["1B", "8B"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--micro-batch-tokens", type=int, default=8192)
    a = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    rate = measure_matmul(device)
    lines = [
        f"{machine()}. Matrix multiplication: {rate / 1e12:.2f} TFLOP/s in bf16.",
        f"Micro-batches of {a.micro_batch_tokens} tokens.",
        "",
        "| shape | weights | texts/s | tokens/s | utilisation | peak GiB | predict texts/s | utilisation |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for shape in a.shapes if on_gpu else ["tiny"]:
        body = 0.0
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_model(folder / "base", shape)
            for four_bit in (False, True):
                cap, budget = (1024, a.micro_batch_tokens) if on_gpu else (64, 256)
                measured = measure(folder, four_bit, a.steps if on_gpu else 3, cap, budget)
                body = measured["body"] or body
                attention = 2 * SHAPES[shape]["num_hidden_layers"] * SHAPES[shape]["hidden_size"]
                train = (4 * body * measured["tokens"] + 2 * attention * measured["squares"]) / rate
                predict = (2 * body * measured["predicted_tokens"] + attention * measured["predicted_squares"]) / rate
                lines.append(
                    f"| {shape} | {'4-bit' if four_bit else 'bf16'} | {measured['texts']:.1f} "
                    f"| {measured['tokens']:.0f} | {train:.0%} | {measured['peak']:.1f} "
                    f"| {measured['predicted']:.1f} | {predict:.0%} |"
                )
                print(lines[-1], flush=True)
    print("\n".join(lines))
    if on_gpu:
        write_section("One GPU", lines)
    else:
        print("no GPU is visible: a tiny shape ran on the CPU, and nothing was written")


if __name__ == "__main__":
    main()
