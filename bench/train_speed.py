"""Compare training with a plain `Trainer`: same model, texts, optimizer batch, epochs and seeds, taking turns.

    python bench/train_speed.py [--rows 2048] [--epochs 2] [--rounds 3]
    python bench/train_speed.py --quality --rows 5809 --epochs 3 --seeds 8 [--max-length 128] [--keep FOLDER]

The first command races for speed. The second compares what is learned: over many seeds, with thresholds of 0.5 on both
sides, and with the paired difference. Use enough steps for F1 to settle, or few, to see how the contestants start.
With --keep, what is finished is not trained again by the same command.

Set REUTERS_DIR and REUTERS_MODEL to use Reuters; otherwise the data of the quickstart is generated. Every training is a
separate process, samples are counted independently of logs, and each round has another seed. Writes bench/results.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.material import (  # noqa: E402
    Material,
    kept,
    machine,
    median_ratio,
    prepare,
    printed_result,
    write_section,
)

# Batch size, accumulation, and whether batches are grouped by length. All optimizer steps have 32 texts.
TRAINERS = {
    "Trainer 4 x 8": (4, 8, False),
    "Trainer 32 x 1": (32, 1, False),
    "Trainer 8 x 4, by length": (8, 4, True),
    "Trainer 32 x 1, by length": (32, 1, True),
}
STEP_ROWS = 32
# What `Trainer` does at 4 x 8: it clips a gradient eight times as large, and AdamW cancels the factor.
CLIPPED = "llmcls, max_grad_norm 0.125"
# What is compared in quality: the key of a result, and its name.
QUALITIES = {
    "f1": "micro-F1 at 0.5",
    "f1_macro": "macro-F1 at 0.5",
    "average_precision": "average precision, macro",
}

Results = dict[str, list[dict[str, float]]]


@dataclass(frozen=True)
class Race:
    """What all contestants train on.

    Attributes
    ----------
    rows, test_rows, epochs : int
    dtype : str
        ``model.torch_dtype``.
    uniform : int, optional
        See `bench.material.prepare`.
    max_length : int
        Tokens per text.
    """

    rows: int
    test_rows: int
    epochs: int
    dtype: str
    uniform: int | None = None
    max_length: int = 512

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.epochs * -(-self.rows // STEP_ROWS)


def train_once(contestant: str, seed: int, race: Race, folder: Path) -> dict[str, float]:
    """Train once in this process.

    Parameters
    ----------
    contestant : str
        "llmcls", `CLIPPED` or a key of `TRAINERS`.
    seed : int
    race : Race
    folder : Path
        For data, models and results.

    Returns
    -------
    dict
        "seconds", "samples", the keys of `QUALITIES`, for llmcls "tokens_per_second", and for a `Trainer` the norm of
        its gradients, see `bench.plain_trainer.train_with_trainer`.
    """
    material: Material = prepare(folder, race.rows, race.test_rows, race.max_length, race.uniform)
    overrides = ["batch_size=4", "gradient_accumulation_steps=8", f"torch_dtype={race.dtype}"]
    # With a lower learning rate, so short a training learns nothing, and F1 would compare noise.
    overrides += [f"num_train_epochs={race.epochs}", "learning_rate=5.0e-3"]
    if contestant == CLIPPED:
        overrides.append("max_grad_norm=0.125")
    recipe = material.recipe(*overrides, f"exp.seeds=[{seed}]", f"exp.output_root={folder / 'outputs'}")
    if contestant in TRAINERS:
        from bench.plain_trainer import train_with_trainer

        return train_with_trainer(recipe, seed, *TRAINERS[contestant], folder / "trainer")
    from llmcls.engine.accelerator import open_accelerator
    from llmcls.results.run_folder import ExperimentFolder
    from llmcls.train import train_seeds

    train_seeds(recipe, open_accelerator(recipe))
    found = json.loads(ExperimentFolder.of(recipe).run(0).metrics.read_text(encoding="utf-8"))
    training, at_half = found["training"], found["at_half"]["test"]
    return {
        "seconds": training["seconds"],
        "samples": float(race.rows * race.epochs),
        "f1": at_half["f1_micro"],
        "f1_macro": at_half["f1_macro"],
        "average_precision": at_half["average_precision_macro"],
        "tokens_per_second": training["tokens_per_second"],
    }


def train_in_subprocess(contestant: str, seed: int, race: Race) -> dict[str, float]:
    """Like `train_once`, in a separate process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--one", contestant, "--seed", str(seed), "--folder", folder]
        return printed_result([*command, "--race", json.dumps(asdict(race))], contestant)


def kept_result(contestant: str, seed: int, race: Race, keep: Path | None) -> dict[str, float]:
    """Like `train_in_subprocess`, unless the folder has the result."""
    if keep is None:
        return train_in_subprocess(contestant, seed, race)
    settings = "-".join(str(value) for value in asdict(race).values())
    name = f"{contestant}-{seed}-{settings}-{os.environ.get('REUTERS_MODEL', '').replace('/', '_')}.json"
    return kept(keep / name, lambda: train_in_subprocess(contestant, seed, race))


def compare(names: list[str], race: Race, rounds: int, keep: Path | None = None) -> Results:
    """Train all contestants in turn, round by round; returns the results of each, also those kept in a folder."""
    results: Results = {name: [] for name in names}
    for seed in range(1, rounds + 1):
        for name in names:
            result = kept_result(name, seed, race, keep)
            result["speed"] = result["samples"] / result["seconds"]
            results[name].append(result)
            print(f"round {seed}  {name:28}  {result['speed']:7.1f} samples/s  F1 {result['f1']:.4f}", flush=True)
    return results


def table(results: Results) -> list[str]:
    """A table of speeds, speedups and F1."""
    ours = [r["speed"] for r in results["llmcls"]]
    lines = ["| | samples/s in each round | speedup of llmcls | test micro-F1 in each round |", "|---|---|---|---|"]
    for name, runs in results.items():
        speeds = [r["speed"] for r in runs]
        ratio = "" if name == "llmcls" else f"{median_ratio(ours, speeds):.2f}"
        numbers = ", ".join(f"{s:.1f}" for s in speeds)
        lines.append(f"| {name} | {numbers} | {ratio} | {', '.join(format(r['f1'], '.3f') for r in runs)} |")
    return lines


def difference(ours: list[float], theirs: list[float]) -> tuple[float, float, float, float]:
    """The mean of the paired differences, the limits of its 95 % interval, and the p-value of "no difference".

    Student's t over the seeds, both sides of a seed being one pair. With fewer than two seeds, only the mean is known.
    """
    from scipy.stats import ttest_1samp

    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    if len(set(gaps)) < 2:
        return statistics.fmean(gaps), float("nan"), float("nan"), float("nan")
    test = ttest_1samp(gaps, 0.0)
    low, high = test.confidence_interval()
    return statistics.fmean(gaps), float(low), float(high), float(test.pvalue)


def quality_table(results: Results) -> list[str]:
    """Mean and deviation of each contestant, and the paired difference to llmcls, for each of `QUALITIES`."""
    lines = []
    for key, title in QUALITIES.items():
        lines += [f"| {title} | mean | deviation | in each round | llmcls minus this | 95 % interval | p |"]
        lines += ["|---|---|---|---|---|---|---|"]
        ours = [r[key] for r in results["llmcls"]]
        for name, runs in results.items():
            values = [r[key] for r in runs]
            spread = f"{statistics.stdev(values):.4f}" if len(values) > 1 else ""
            cells = [name, f"{statistics.fmean(values):.4f}", spread, ", ".join(f"{v:.3f}" for v in values)]
            if name == "llmcls":
                cells += ["", "", ""]
            else:
                mean, low, high, p = difference(ours, values)
                cells += [f"{mean:+.4f}", *(["", ""] if math.isnan(p) else [f"{low:+.4f} to {high:+.4f}", f"{p:.3f}"])]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return lines


def gradient_lines(results: Results) -> list[str]:
    """What the `Trainer` logged about its gradients."""
    lines = ["| | norm of the first gradient, median | logged steps with a norm above 1, which clipping shortens |"]
    lines += ["|---|---|---|"]
    for name, runs in results.items():
        if name in TRAINERS:
            norm = statistics.median(r["first_gradient_norm"] for r in runs)
            clipped = statistics.fmean(r["clipped_share"] for r in runs)
            lines.append(f"| {name} | {norm:.2f} | {clipped:.0%} |")
    return lines


def race_for_quality(race: Race, seeds: int, keep: Path | None, only: list[str] | None) -> None:
    """Compare what is learned, print the tables and write them, unless only some contestants train."""
    results = compare(only or ["llmcls", CLIPPED, "Trainer 4 x 8", "Trainer 32 x 1"], race, seeds, keep)
    if only:
        return
    ours, theirs = ([r["f1"] for r in results[name]] for name in (CLIPPED, "Trainer 4 x 8"))
    mean, low, high, p = difference(ours, theirs)
    lines = [
        f"{machine()}. {_data_name()}, {race.rows} training texts, {race.epochs} epochs, {race.steps} steps of "
        f"{STEP_ROWS} texts,",
        f"LoRA r 8 on every linear layer, max_length {race.max_length}, {race.dtype}, {race.test_rows} test texts, "
        f"{seeds} seeds, each training in a process of its own.",
        "",
        *quality_table(results),
        f"{CLIPPED}, minus Trainer 4 x 8: micro-F1 {mean:+.4f} (95 % interval {low:+.4f} to {high:+.4f}, p {p:.3f}).",
        "",
        *gradient_lines(results),
    ]
    write_section(f"Quality of training, {race.steps} steps", lines)
    print("\n".join(lines))


def race_for_speed(race: Race, rounds: int) -> None:
    """Compare the speed, print the tables and write them."""
    mixed = compare(["llmcls", *TRAINERS], race, rounds)
    # The mean length of the mixed texts, so that the cost of attention per token is similar.
    tokens = mixed["llmcls"][0]["tokens_per_second"] * mixed["llmcls"][0]["seconds"] / (race.rows * race.epochs)
    length = max(16, int(tokens))
    same = replace(race, rows=race.rows // 2, epochs=1, uniform=length)
    uniform = compare(["llmcls", "Trainer 8 x 4, by length", "Trainer 32 x 1"], same, rounds)
    rates = [[r["tokens_per_second"] for r in results["llmcls"]] for results in (mixed, uniform)]
    lines = [
        f"{machine()}. {_data_name()}, {race.rows} training texts of {tokens:.0f} tokens on average, "
        f"{race.epochs} epochs,",
        f"32 texts per optimizer step, LoRA r 8 on every linear layer, max_length 512, {race.dtype},",
        f"{rounds} rounds, taking turns, each with another seed; speedups are medians over rounds.",
        "",
        *table(mixed),
        "",
        f"{same.rows} texts of the same length ({length} tokens), one epoch:",
        "",
        *table(uniform),
        "",
        f"Packed rows have no padding: llmcls processes {median_ratio(*rates):.2f} times as many tokens/s with mixed "
        "lengths as with one length.",
    ]
    write_section("Training", lines)
    print("\n".join(lines))


def _data_name() -> str:
    with tempfile.TemporaryDirectory() as folder:
        return prepare(Path(folder), 8, 8).name


def main() -> None:
    """Compare, print the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--test-rows", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quality", action="store_true", help="compare what is learned instead of the speed")
    parser.add_argument("--seeds", type=int, default=8, help="seeds of --quality")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--keep", type=Path, help="folder for the results of --quality")
    parser.add_argument(
        "--only", nargs="+", choices=["llmcls", CLIPPED, *TRAINERS], help="only train these, in --quality"
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--race", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.one:
        print(json.dumps(train_once(a.one, a.seed, Race(**a.race), Path(a.folder))))
        return
    race = Race(a.rows, a.test_rows, a.epochs, a.dtype, max_length=a.max_length)
    if a.quality:
        race_for_quality(race, a.seeds, a.keep, a.only)
    else:
        race_for_speed(race, a.rounds)


if __name__ == "__main__":
    main()
