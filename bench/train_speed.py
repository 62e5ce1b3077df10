"""Compare training with a plain `Trainer`: same model, texts, optimizer batch, epochs and seeds, taking turns.

    python bench/train_speed.py [--rows 2048] [--epochs 2] [--rounds 3]

Set REUTERS_DIR and REUTERS_MODEL to use Reuters; otherwise the data of the quickstart is generated. Every training is a
separate process, samples are counted independently of logs, and each round has another seed. Writes bench/results.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.material import Material, machine, median_ratio, prepare, write_section  # noqa: E402

# Batch size, accumulation, and whether batches are grouped by length. All optimizer steps have 32 texts.
TRAINERS = {
    "Trainer 4 x 8": (4, 8, False),
    "Trainer 32 x 1": (32, 1, False),
    "Trainer 8 x 4, by length": (8, 4, True),
    "Trainer 32 x 1, by length": (32, 1, True),
}


def train_once(
    contestant: str, seed: int, rows: int, epochs: int, uniform: int | None, dtype: str, folder: Path
) -> dict[str, float]:
    """Train once in this process.

    Parameters
    ----------
    contestant : str
        "llmcls" or a key of `TRAINERS`.
    seed, rows, epochs : int
    uniform : int, optional
        See `bench.material.prepare`.
    dtype : str
        ``model.torch_dtype``.
    folder : Path
        For data, models and results.

    Returns
    -------
    dict
        "seconds", "samples", "f1", and for llmcls "tokens_per_second".
    """
    material: Material = prepare(folder, rows, 1000, uniform=uniform)
    overrides = ["batch_size=4", "gradient_accumulation_steps=8", f"torch_dtype={dtype}"]
    # With a lower learning rate, so short a training learns nothing, and F1 would compare noise.
    overrides += [f"num_train_epochs={epochs}", "learning_rate=5.0e-3"]
    recipe = material.recipe(*overrides, f"exp.seeds=[{seed}]", f"exp.output_root={folder / 'outputs'}")
    if contestant != "llmcls":
        from bench.plain_trainer import train_with_trainer

        return train_with_trainer(recipe, seed, *TRAINERS[contestant], folder / "trainer")
    from llmcls.engine.accelerator import open_accelerator
    from llmcls.results.run_folder import ExperimentFolder
    from llmcls.train import train_seeds

    train_seeds(recipe, open_accelerator(recipe))
    found = json.loads(ExperimentFolder.of(recipe).run(0).metrics.read_text(encoding="utf-8"))
    training = found["training"]
    return {
        "seconds": training["seconds"],
        "samples": float(rows * epochs),
        "f1": found["test"]["f1_micro"],
        "tokens_per_second": training["tokens_per_second"],
    }


def train_in_subprocess(
    contestant: str, seed: int, rows: int, epochs: int, uniform: int | None, dtype: str
) -> dict[str, float]:
    """Like `train_once`, in a separate process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--one", contestant, "--seed", str(seed), "--rows", str(rows)]
        command += [
            "--epochs",
            str(epochs),
            "--dtype",
            dtype,
            "--folder",
            folder,
            *(["--uniform", str(uniform)] if uniform else []),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{contestant} failed:\n{done.stderr[-3000:]}")
        return json.loads(done.stdout.strip().splitlines()[-1])


def compare(
    names: list[str], rows: int, epochs: int, rounds: int, uniform: int | None, dtype: str
) -> dict[str, list[dict]]:
    """Train all contestants in turn, round by round; returns the results of each."""
    results: dict[str, list[dict]] = {name: [] for name in names}
    for seed in range(1, rounds + 1):
        for name in names:
            result = train_in_subprocess(name, seed, rows, epochs, uniform, dtype)
            result["speed"] = result["samples"] / result["seconds"]
            results[name].append(result)
            print(f"round {seed}  {name:28}  {result['speed']:7.1f} samples/s  F1 {result['f1']:.4f}", flush=True)
    return results


def table(results: dict[str, list[dict]]) -> list[str]:
    """A table of speeds, speedups and F1."""
    ours = [r["speed"] for r in results["llmcls"]]
    lines = ["| | samples/s in each round | speedup of llmcls | test micro-F1 in each round |", "|---|---|---|---|"]
    for name, runs in results.items():
        speeds = [r["speed"] for r in runs]
        ratio = "" if name == "llmcls" else f"{median_ratio(ours, speeds):.2f}"
        numbers = ", ".join(f"{s:.1f}" for s in speeds)
        lines.append(f"| {name} | {numbers} | {ratio} | {', '.join(format(r['f1'], '.3f') for r in runs)} |")
    return lines


def main() -> None:
    """Compare, print the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--uniform", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.one:
        print(json.dumps(train_once(a.one, a.seed, a.rows, a.epochs, a.uniform, a.dtype, Path(a.folder))))
        return
    mixed = compare(["llmcls", *TRAINERS], a.rows, a.epochs, a.rounds, None, a.dtype)
    # The mean length of the mixed texts, so that the cost of attention per token is similar.
    tokens = mixed["llmcls"][0]["tokens_per_second"] * mixed["llmcls"][0]["seconds"] / (a.rows * a.epochs)
    length = max(16, int(tokens))
    uniform = compare(
        ["llmcls", "Trainer 8 x 4, by length", "Trainer 32 x 1"], a.rows // 2, 1, a.rounds, length, a.dtype
    )
    rates = [[r["tokens_per_second"] for r in results["llmcls"]] for results in (mixed, uniform)]
    with tempfile.TemporaryDirectory() as folder:
        name = prepare(Path(folder), 8, 8).name
    lines = [
        f"{machine()}. {name}, {a.rows} training texts of {tokens:.0f} tokens on average, {a.epochs} epochs,",
        f"32 texts per optimizer step, LoRA r 8 on every linear layer, max_length 512, {a.dtype},",
        f"{a.rounds} rounds, taking turns, each with another seed; speedups are medians over rounds.",
        "",
        *table(mixed),
        "",
        f"{a.rows // 2} texts of the same length ({length} tokens), one epoch:",
        "",
        *table(uniform),
        "",
        f"Packed rows have no padding: llmcls processes {median_ratio(*rates):.2f} times as many tokens/s with mixed "
        "lengths as with one length.",
    ]
    write_section("Training", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
