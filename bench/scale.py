"""What rows and ranks cost: 100 to 1,000,000 short texts with a two-layer model, and one rank against two.

    python bench/scale.py [--rows 100 10000 1000000]

Each stage is a process of its own, so that its peak memory is its own: look (read, check, tokenize), train (one epoch),
predict. Steadiness compares the samples/s of the last tenth of the training with the first (its first report left out).
"""

from __future__ import annotations

import argparse
import json
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
    """Two layers, 32 wide, random: the cost of rows is what is measured."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tokenizer = train_tokenizer(make_corpus(200, 0))
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_rows(path: Path, count: int) -> None:
    """Short product titles with two labels."""
    words = ["garden", "kitchen", "novel", "album", "drone", "kettle", "film", "rake", "puzzle", "lamp"]
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write("uid,text,even,third\n")
        for i in range(count):
            file.write(f"r{i},a {words[i % 10]} and {words[i // 10 % 10]} no {i % 977},{i % 2},{int(i % 3 == 0)}\n")


def run(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Seconds, and the peak of the main process's own memory in GiB (Linux: VmHWM)."""
    began = time.perf_counter()
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
    return time.perf_counter() - began, peak[0]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100, 10_000, 1_000_000])
    a = parser.parse_args()
    lines = [
        f"{machine()}. Texts of about ten tokens, a random two-layer model of width 32, LoRA r 4, float32.",
        "Peak memory is that of the process, PyTorch included.",
        "",
        "| rows | look: s, GiB | train: s, GiB, samples/s | last tenth / first | predict: s, GiB |",
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
            look = run([*python, "llmcls.check", str(recipe)], environment)
            train = run([*python, "llmcls.train", str(recipe)], environment)
            folder_of_run = folder / "outputs" / "model" / f"rows{count}" / "run_0"
            predict = ["--run", str(folder_of_run), "--input", str(data), "--output", str(folder / "out.jsonl")]
            predicted = run([*python, "llmcls.predict", *predict], environment)
            with (folder / "out.jsonl").open(encoding="utf-8") as file:
                assert sum(1 for _ in file) == count
            log = [json.loads(line) for line in (folder_of_run / "metrics.jsonl").open(encoding="utf-8")]
            speeds = [line["samples_per_second"] for line in log if line["split"] == "train"][1:]
            tenth = max(1, len(speeds) // 10)
            steady = sum(speeds[-tenth:]) / sum(speeds[:tenth]) if len(speeds) > 10 else float("nan")
            overall = json.loads((folder_of_run / "metrics.json").read_text())["training"]["samples_per_second"]
            lines.append(
                f"| {count:,} | {look[0]:.0f}, {look[1]:.2f} | {train[0]:.0f}, {train[1]:.2f}, {overall:.0f} "
                f"| {'' if steady != steady else format(steady, '.2f')} | {predicted[0]:.0f}, {predicted[1]:.2f} |"
            )
            print(lines[-1], flush=True)
            if count == sorted(a.rows)[len(a.rows) // 2]:
                for processes in (1, 2):
                    command = [*python, "accelerate.commands.launch", "--config_file", "accel_configs/cpu.yaml"]
                    command += ["--num_processes", str(processes), "-m", "llmcls.train", str(recipe)]
                    command += [f"exp.run_name=ranks{processes}", f"train.batch_size={128 // processes}"]
                    run(command, environment)
                    found = (
                        folder / "outputs" / "model" / f"rows{count}" / f"ranks{processes}" / "run_0" / "metrics.json"
                    )
                    ranks[processes] = json.loads(found.read_text())["training"]["samples_per_second"]
        lines += [
            "",
            f"Ranks on the same cores, same optimizer batch: one {ranks[1]:.0f} samples/s, two {ranks[2]:.0f} "
            f"({ranks[2] / ranks[1]:.2f} times).",
        ]
    write_section("Scale", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
