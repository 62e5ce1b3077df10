"""Measure the cost of rows and ranks: 100 to 1,000,000 short texts with a two-layer model, and one rank against two.

    python bench/scale.py [--rows 100 10000 1000000]

Each stage runs in a separate process, to measure its peak memory: check (read, validate, tokenize), train (one epoch),
predict. The ratio of the samples/s in the last and the first tenth of training shows whether the speed is constant. The
first logging interval is left out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.material import machine, write_section  # noqa: E402
from llmcls.datasets.products import make_corpus  # noqa: E402
from llmcls.model.tiny import train_tokenizer  # noqa: E402


def write_untrained_llama(folder: Path) -> None:
    """Write a random model with two layers of width 32, so small that the cost of rows dominates."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tokenizer = train_tokenizer(make_corpus(200, 0))
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_rows(path: Path, count: int) -> None:
    """Write a CSV file of short product titles with two labels."""
    words = ["garden", "kitchen", "novel", "album", "drone", "kettle", "film", "rake", "puzzle", "lamp"]
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write("uid,text,even,third\n")
        for i in range(count):
            file.write(f"r{i},a {words[i % 10]} and {words[i // 10 % 10]} no {i % 977},{i % 2},{int(i % 3 == 0)}\n")


def execute(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Run a command and measure it.

    Returns
    -------
    seconds : float
    peak : float
        Peak memory of the main process in GiB (VmHWM, on Linux only).
    """
    start = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=errors, stdout=subprocess.DEVNULL)
        peak = [0.0]

        def watch() -> None:
            while process.poll() is None:
                try:
                    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
                except OSError:
                    return
                for line in status.splitlines():
                    if line.startswith("VmHWM"):
                        peak[0] = max(peak[0], int(line.split()[1]) / 2**20)
                time.sleep(0.05)

        watcher = threading.Thread(target=watch)
        watcher.start()
        code = process.wait()
        watcher.join()
        if code:
            errors.seek(0)
            sys.exit(errors.read().decode(errors="replace")[-3000:])
    return time.perf_counter() - start, peak[0]


def main() -> None:
    """Measure, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100, 10_000, 1_000_000])
    a = parser.parse_args()
    lines = [
        f"{machine()}. Texts of about ten tokens, a random two-layer model of width 32, LoRA r 4, float32.",
        "Peak memory is that of the process, including PyTorch.",
        "",
        "| rows | check: s, GiB | train: s, GiB, samples/s | last tenth / first | predict: s, GiB |",
        "|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_untrained_llama(folder / "model")
        environment = os.environ | {"HF_DATASETS_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
        write_rows(folder / "few.csv", 50)
        ranks = {}
        for count in a.rows:
            data = folder / f"{count}.csv"
            write_rows(data, count)
            recipe = folder / "recipe.yaml"
            recipe.write_text(
                f"data: {{dataset_name: rows{count}, id_column: uid, target_text_column: text, max_length: 32,\n"
                f"  train_csv: {data}, test_csv: {folder / 'few.csv'}, label_columns: [even, third]}}\n"
                f"model: {{model_name: {folder / 'model'}, torch_dtype: float32, lora_r: 4}}\n"
                "train: {batch_size: 128, gradient_accumulation_steps: 1, num_train_epochs: 1, report_to: [],\n"
                f"  logging_steps: {max(1, count // 12800)}, train_metrics_rows: 0}}\n"
                f"exp: {{output_root: {folder / 'outputs'}}}\n",
                encoding="utf-8",
            )
            python = [sys.executable, "-m"]
            check = execute([*python, "llmcls.check", str(recipe)], environment)
            train = execute([*python, "llmcls.train", str(recipe)], environment)
            run_folder = folder / "outputs" / "model" / f"rows{count}" / "run_0"
            predict = ["--run", str(run_folder), "--input", str(data), "--output", str(folder / "out.jsonl")]
            predicted = execute([*python, "llmcls.predict", *predict], environment)
            with (folder / "out.jsonl").open(encoding="utf-8") as file:
                assert sum(1 for _ in file) == count
            log = [json.loads(line) for line in (run_folder / "metrics.jsonl").open(encoding="utf-8")]
            speeds = [line["samples_per_second"] for line in log if line["split"] == "train"][1:]
            tenth = max(1, len(speeds) // 10)
            ratio = sum(speeds[-tenth:]) / sum(speeds[:tenth]) if len(speeds) > 10 else float("nan")
            overall = json.loads((run_folder / "metrics.json").read_text())["training"]["samples_per_second"]
            lines.append(
                f"| {count:,} | {check[0]:.0f}, {check[1]:.2f} | {train[0]:.0f}, {train[1]:.2f}, {overall:.0f} "
                f"| {'' if math.isnan(ratio) else format(ratio, '.2f')} | {predicted[0]:.0f}, {predicted[1]:.2f} |"
            )
            print(lines[-1], flush=True)
            if count == sorted(a.rows)[len(a.rows) // 2]:
                for processes in (1, 2):
                    command = [*python, "accelerate.commands.launch", "--config_file", "accel_configs/cpu.yaml"]
                    command += ["--num_processes", str(processes), "-m", "llmcls.train", str(recipe)]
                    command += [f"exp.run_name=ranks{processes}", f"train.batch_size={128 // processes}"]
                    execute(command, environment)
                    found = (
                        folder / "outputs" / "model" / f"rows{count}" / f"ranks{processes}" / "run_0" / "metrics.json"
                    )
                    ranks[processes] = json.loads(found.read_text())["training"]["samples_per_second"]
        lines += [
            "",
            f"On the same cores with the same optimizer batch: {ranks[1]:.0f} samples/s with one rank, "
            f"{ranks[2]:.0f} with two ({ranks[2] / ranks[1]:.2f} times as many).",
        ]
    write_section("Scale", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
