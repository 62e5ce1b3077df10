"""Race training against a plain `Trainer`: same model, texts, optimizer batch, epochs and seeds, turn by turn.

    python bench/train_speed.py [--rows 2048] [--epochs 2] [--rounds 3]

Set REUTERS_DIR and REUTERS_MODEL to race on Reuters; otherwise the quickstart's set is made. Every run is a process of
its own; samples are counted, not taken from anyone's log; each round has another seed. Writes bench/results.md.
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

# batch size, accumulation, grouped by length: an optimizer step always holds 32 texts.
TRAINERS = {
    "Trainer 4 x 8": (4, 8, False),
    "Trainer 32 x 1": (32, 1, False),
    "Trainer 8 x 4, by length": (8, 4, True),
    "Trainer 32 x 1, by length": (32, 1, True),
}


def run_one(
    contestant: str, seed: int, rows: int, epochs: int, uniform: int | None, dtype: str, folder: Path
) -> dict[str, float]:
    """One training in this process."""
    material: Material = prepare(folder, rows, 1000, uniform=uniform)
    overrides = ["batch_size=4", "gradient_accumulation_steps=8", f"torch_dtype={dtype}"]
    # A rate at which so short a training learns something, or F1 would compare noise.
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


def start(contestant: str, seed: int, rows: int, epochs: int, uniform: int | None, dtype: str) -> dict[str, float]:
    """The same in a process of its own."""
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


def race(
    names: list[str], rows: int, epochs: int, rounds: int, uniform: int | None, dtype: str
) -> dict[str, list[dict]]:
    """All contestants in turn, round by round."""
    results: dict[str, list[dict]] = {name: [] for name in names}
    for seed in range(1, rounds + 1):
        for name in names:
            result = start(name, seed, rows, epochs, uniform, dtype)
            result["speed"] = result["samples"] / result["seconds"]
            results[name].append(result)
            print(f"round {seed}  {name:28}  {result['speed']:7.1f} samples/s  F1 {result['f1']:.4f}", flush=True)
    return results


def table(results: dict[str, list[dict]]) -> list[str]:
    """Speeds, ratios and F1 of a race."""
    ours = [r["speed"] for r in results["llmcls"]]
    lines = ["| | samples/s, each round | llmcls is faster by | test micro-F1, each round |", "|---|---|---|---|"]
    for name, runs in results.items():
        speeds = [r["speed"] for r in runs]
        ratio = "" if name == "llmcls" else f"{median_ratio(ours, speeds):.2f}"
        numbers = ", ".join(f"{s:.1f}" for s in speeds)
        lines.append(f"| {name} | {numbers} | {ratio} | {', '.join(format(r['f1'], '.3f') for r in runs)} |")
    return lines


def main() -> None:
    """Race, print, write."""
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
        print(json.dumps(run_one(a.one, a.seed, a.rows, a.epochs, a.uniform, a.dtype, Path(a.folder))))
        return
    mixed = race(["llmcls", *TRAINERS], a.rows, a.epochs, a.rounds, None, a.dtype)
    # As long as the mixed texts are on average, so that a token costs the same attention.
    tokens = mixed["llmcls"][0]["tokens_per_second"] * mixed["llmcls"][0]["seconds"] / (a.rows * a.epochs)
    length = max(16, int(tokens))
    uniform = race(["llmcls", "Trainer 8 x 4, by length", "Trainer 32 x 1"], a.rows // 2, 1, a.rounds, length, a.dtype)
    rates = [[r["tokens_per_second"] for r in results["llmcls"]] for results in (mixed, uniform)]
    with tempfile.TemporaryDirectory() as folder:
        name = prepare(Path(folder), 8, 8).name
    lines = [
        f"{machine()}. {name}, {a.rows} training texts of {tokens:.0f} tokens on average, {a.epochs} epochs,",
        f"32 texts an optimizer step, LoRA r 8 on every linear layer, max_length 512, {a.dtype},",
        f"{a.rounds} rounds in turn, each with another seed; medians of ratios.",
        "",
        *table(mixed),
        "",
        f"Texts of one length ({length} tokens), {a.rows // 2} of them, one epoch:",
        "",
        *table(uniform),
        "",
        "Padding: packed rows hold none. llmcls's tokens/s on mixed lengths over those on one length: "
        f"{median_ratio(*rates):.2f}.",
    ]
    write_section("Training", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
