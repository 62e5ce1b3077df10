"""Fine-tune a real pretrained decoder: share of a matrix-product probe, and speed against `Trainer` and a plain loop.

    REUTERS_DIR=... python bench/pretrained.py MODEL [--rows 192] [--rounds 2] [--dtype bfloat16]
    BANKING77_DIR=... python bench/pretrained.py MODEL --messages --rows 768
    REUTERS_DIR=... python bench/pretrained.py MODEL --quality --rows 384 --max-length 64 --rounds 5

MODEL is a folder or a name on the hub. Every contestant trains one epoch of the same texts in its own process, taking
turns, each round with another seed: llmcls, llmcls with ``train.kernels=off``, and `Trainer` at 4 x 8. The probe is
timed in the process of llmcls, before and after training. Model FLOPs are counted as in bench/gpu.py. Afterwards each
predicts as many other texts. ``--messages`` takes short messages of customers instead of articles. ``--quality``
compares what is learned instead, with thresholds of 0.5 on both sides. With ``--keep FOLDER``, what is finished is not
trained again by the same command. Writes bench/results.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.material import (  # noqa: E402
    Material,
    kept,
    machine,
    median_ratio,
    prepare,
    prepare_messages,
    printed_result,
    write_section,
)
from bench.train_speed import quality_table  # noqa: E402

CONTESTANTS = ("llmcls", "llmcls, kernels off", "Trainer 4 x 8")


def probe(dtype: str) -> float:
    """The median FLOP/s of a matrix product of the model's kind of size."""
    import torch

    side, rates = 1536, []
    a, b = (torch.randn(side, side, dtype=getattr(torch, dtype)) for _ in range(2))
    for _ in range(9):
        start = time.perf_counter()
        a @ b
        rates.append(2 * side**3 / (time.perf_counter() - start))
    return statistics.median(rates)


def train_once(contestant: str, seed: int, a: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Train once in this process, and for llmcls also predict, against a plain loop."""
    material: Material | None
    if a.messages:
        material = prepare_messages(folder / "messages", a.rows, a.rows)
    else:
        material = prepare(folder, a.rows, a.rows, a.max_length)
    if material is None:
        sys.exit("--messages needs the folder of Banking77 in BANKING77_DIR")
    recipe = material.recipe(
        "batch_size=4", "gradient_accumulation_steps=8", f"torch_dtype={a.dtype}",
        f"model.model_name={a.model}", "learning_rate=5.0e-4", f"micro_batch_tokens={a.micro_batch_tokens}",
        f"kernels={'off' if contestant.endswith('off') else 'auto'}", f"exp.output_root={folder / 'outputs'}",
        "exp.baselines=false", f"exp.seeds=[{seed}]", f"num_train_epochs={a.epochs}",
    )  # fmt: skip
    if contestant.startswith("Trainer"):
        from bench.plain_trainer import train_with_trainer

        return train_with_trainer(recipe, seed, 4, 8, False, folder / "trainer")
    from bench.predict_speed import plain_loop
    from llmcls.data.splits import tokenize_split
    from llmcls.data.tables import read_table
    from llmcls.engine.accelerator import open_accelerator
    from llmcls.evaluation.scoring import make_scorer, score_split
    from llmcls.model.build import load_trained_classifier
    from llmcls.model.pretrained import load_tokenizer
    from llmcls.results.finished_runs import open_run
    from llmcls.results.run_folder import ExperimentFolder
    from llmcls.train import train_seeds

    before = probe(a.dtype)
    accelerator = open_accelerator(recipe)
    train_seeds(recipe, accelerator)
    run = open_run(ExperimentFolder.of(recipe).run(0))
    metrics = json.loads(run.folder.metrics.read_text(encoding="utf-8"))
    at_half = metrics["at_half"]["test"]
    found = {
        "seconds": metrics["training"]["seconds"], "samples": float(a.rows * a.epochs),
        "probe": (before + probe(a.dtype)) / 2, "f1": at_half["f1_micro"], "f1_macro": at_half["f1_macro"],
        "average_precision": at_half["average_precision_macro"],
    }  # fmt: skip
    if a.quality:
        return found
    tokenizer = load_tokenizer(recipe.model)
    split = tokenize_split(read_table(recipe.data.test_csv, ""), "test", "", recipe, tokenizer, run.labels)
    model = load_trained_classifier(run.recipe, run.labels, run.folder.model, accelerator.device)
    prepared = accelerator.prepare_model(model, evaluation_mode=True)
    scorer = make_scorer(accelerator, prepared, run.labels, tokenizer.pad_token_id, run.recipe)
    start = time.perf_counter()
    score_split(scorer, split)
    found["predicting"] = time.perf_counter() - start
    if contestant == "llmcls":
        for batch in (4, 32):
            found[f"plain loop {batch}"], _ = plain_loop(run, split, tokenizer.pad_token_id, batch)
    found |= _model_flops(model, tokenize_split(
        read_table(recipe.data.train_csv, ""), "train", "", recipe, tokenizer, run.labels
    ).lengths)  # fmt: skip
    return found


def train_in_subprocess(contestant: str, seed: int) -> dict[str, float]:
    """Like `train_once`, in a separate process with the arguments of this one."""
    return printed_result([sys.executable, *sys.argv, "--one", contestant, str(seed)], contestant)


def kept_result(contestant: str, seed: int, a: argparse.Namespace) -> dict[str, float]:
    """Like `train_in_subprocess`, unless the folder of ``--keep`` has the result."""
    if a.keep is None:
        return train_in_subprocess(contestant, seed)
    settings = (str(v).replace("/", "_") for k, v in vars(a).items() if k not in ("rounds", "keep", "only", "one"))
    name = f"{contestant}-{seed}-{'-'.join(settings)}.json"
    return kept(a.keep / name, lambda: train_in_subprocess(contestant, seed))


def _model_flops(model: Any, lengths: Any) -> dict[str, float]:
    """Tokens of an epoch, and FLOPs of one of LoRA training without recomputation; see bench/gpu.py."""
    config = model.config
    body = sum(p.numel() for n, p in model.named_parameters() if "layers" in n and "lora" not in n)
    attention = 2 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    squares = float((lengths.astype(float) ** 2).sum())
    return {"tokens": float(lengths.sum()), "flops": 4.0 * body * float(lengths.sum()) + 2 * attention * squares}


def main() -> None:
    """Measure, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--micro-batch-tokens", type=int, default=2048)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--messages", action="store_true", help="short messages instead of articles")
    parser.add_argument("--quality", action="store_true", help="compare what is learned instead of the speed")
    parser.add_argument("--keep", type=Path, help="folder for the results")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, help="only train these, and write nothing")
    parser.add_argument("--one", nargs=2, metavar=("CONTESTANT", "SEED"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    os.environ["REUTERS_MODEL"] = a.model
    if a.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(train_once(a.one[0], int(a.one[1]), a, Path(folder))))
        return
    names = a.only or [name for name in CONTESTANTS if not (a.quality and name.endswith("off"))]
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for seed in range(1, a.rounds + 1):
        for name in names:
            results[name].append(kept_result(name, seed, a))
            print(name, results[name][-1], flush=True)
    if a.only:
        return
    texts = "messages of Banking77" if a.messages else f"Reuters texts, max_length {a.max_length}"
    about = (
        f"{machine()}. {Path(a.model).name}, {a.dtype}, LoRA r 8 on every linear layer, {a.rows} {texts}, 32 a step, "
        f"{a.epochs} epoch(s), {a.rounds} rounds{'' if a.quality else ', taking turns'}, each with another seed."
    )
    title = "A pretrained decoder on a CPU"
    if a.quality:
        write_section(f"{title}: quality", [about, "", *quality_table(results)])
        return
    write_section(f"{title}: messages" if a.messages else title, [about, *speed_lines(results, a.rows)])


def speed_lines(results: dict[str, list[dict[str, float]]], rows: int) -> list[str]:
    """The table of the race for speed, and the sentences around it."""
    speed = {name: [r["samples"] / r["seconds"] for r in found] for name, found in results.items()}
    ours, trainer = results["llmcls"], results["Trainer 4 x 8"]
    gigaflops = ", ".join(f"{r['probe'] / 1e9:.0f}" for r in ours)
    lines = [
        f"The texts have {ours[0]['tokens'] / rows:.0f} tokens on average. "
        f"The probe, a product of two matrices of 1,536 x 1,536, reached {gigaflops} GFLOP/s.",
        "",
        "| | samples/s | share of the probe | speed of llmcls |",
        "|---|---|---|---|",
    ]
    for name, found in results.items():
        share = statistics.median(r.get("flops", 0) / r["seconds"] / r.get("probe", 1) for r in found)
        ratio = "" if name == "llmcls" else f"{median_ratio(speed['llmcls'], speed[name]):.2f}"
        shown = f"{share:.0%}" if share else ""
        lines.append(f"| {name} | {', '.join(f'{s:.2f}' for s in speed[name])} | {shown} | {ratio} |")
    lines += ["", "| prediction | texts/s | speed of llmcls |", "|---|---|---|"]
    times = {
        "llmcls": [r["predicting"] for r in ours],
        **{f"Trainer, batch {rows}": [r[f"predicting {rows}"] for r in trainer] for rows in (8, 16)},
        "plain loop, batch 4": [r["plain loop 4"] for r in ours],
        "plain loop, batch 32": [r["plain loop 32"] for r in ours],
    }
    for name, seconds in times.items():
        ratio = "" if name == "llmcls" else f"{median_ratio(seconds, times['llmcls']):.2f}"
        lines.append(f"| {name} | {', '.join(f'{rows / s:.2f}' for s in seconds)} | {ratio} |")
    return lines


if __name__ == "__main__":
    main()
