"""Does an exported run decide as the run did? A table over precisions, ways of training, tasks and models.

    python bench/export.py SMOLLM2 GEMMA3 [--only 1,4] [--no-graphs]

The two arguments are folders or names on the hub of pretrained decoders, such as SmolLM2-135M and Gemma 3 270M; an
encoder with random weights is made here. Each case trains three steps on texts of the quickstart, exports, and compares
the validation rows in a process that cannot import llmcls; some become ONNX graphs too, which takes minutes for a
decoder. Writes bench/results.md after each case; rows of cases that are not measured again stay as they are.
"""

from __future__ import annotations

import argparse
import csv
import logging
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.material import machine, write_section  # noqa: E402
from llmcls.datasets.products import TOPICS, write_data  # noqa: E402
from llmcls.results.finished_runs import FinishedRun, open_run  # noqa: E402
from llmcls.results.run_folder import RunFolder  # noqa: E402
from llmcls.serving.export import ExportOptions, NotTheSameError, export_run  # noqa: E402
from llmcls.serving.proof import Proof  # noqa: E402

SIZES = {"train": 24, "validation": 32, "test": 10}
TITLE = "Exports"
# Few, so that each is among the training texts.
CLASSES = ("books", "music", "movies")
HEADER = (
    "model", "weights", "trained", "task", "largest difference", "allowed", "changed decisions", "ONNX", "ONNX int8",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes
    ----------
    model : str
        "SmolLM2", "Gemma 3" or "encoder".
    weights : str
        "float32", "bfloat16" or "4-bit".
    trained : str
        "LoRA", "DoRA" or "full".
    task : str
        "single", "binary" or "multi-label".
    graphs : tuple of bool
        ONNX graphs to make: in float32 (False), in 8 bits (True).
    """

    model: str
    weights: str
    trained: str
    task: str
    graphs: tuple[bool, ...] = ()


CASES = (
    Case("SmolLM2", "float32", "LoRA", "single", (False, True)),
    Case("SmolLM2", "float32", "full", "multi-label"),
    Case("SmolLM2", "bfloat16", "DoRA", "binary"),
    Case("SmolLM2", "4-bit", "LoRA", "multi-label"),
    Case("Gemma 3", "float32", "LoRA", "binary", (False,)),
    Case("Gemma 3", "float32", "DoRA", "single"),
    Case("Gemma 3", "bfloat16", "full", "single"),
    Case("Gemma 3", "4-bit", "DoRA", "multi-label"),
    Case("encoder", "float32", "LoRA", "single", (False, True)),
    Case("encoder", "float32", "full", "binary"),
    Case("encoder", "bfloat16", "LoRA", "multi-label"),
)


def write_tables(folder: Path) -> None:
    """The texts of the quickstart, with a column for each task."""
    write_data(folder, 0, SIZES)
    for split in SIZES:
        path = folder / f"{split}.csv"
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            row["topic"] = next((name for name in CLASSES if row[name] == "1"), "other")
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def write_encoder(folder: Path, tokenizer_of: str) -> None:
    """A BERT of four layers with random weights and the tokenizer of another model."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256,
        max_position_embeddings=128, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)


def train(case: Case, model: str, folder: Path, number: int) -> FinishedRun:
    """Train three steps in a new process."""
    tasks = {
        "single": ("single_label_classification", "[topic]"),
        "binary": ("binary_classification", "[books]"),
        "multi-label": ("multi_label_classification", f"[{','.join(TOPICS)}]"),
    }
    problem, columns = tasks[case.task]
    settings = {
        "data.dataset_name": f"case{number}", "data.id_column": "uid", "data.text_fields": "[title,description]",
        "data.max_length": 96, "data.label_columns": columns, "data.prompt": "null",
        "data.train_csv": folder / "data" / "train.csv", "data.val_csv": folder / "data" / "validation.csv",
        "data.test_csv": "null",
        "model.model_name": model, "model.problem_type": problem,
        "model.use_4bit": str(case.weights == "4-bit").lower(),
        "model.torch_dtype": "bfloat16" if case.weights == "bfloat16" else "float32",
        "model.lora_r": 0 if case.trained == "full" else 8, "model.lora_target_modules": "[all-linear]",
        "model.lora_variant": "dora" if case.trained == "DoRA" else "lora",
        "train.max_steps": 3, "train.batch_size": 8, "train.learning_rate": 2e-5 if case.trained == "full" else 1e-3,
        "train.eval_steps": 3, "train.report_to": "[]", "train.train_metrics_rows": 0,
        "train.metric_for_best_model": "f1_micro" if case.task == "multi-label" else "accuracy",
        "exp.output_root": folder / "outputs", "exp.seeds": "[1]", "exp.baselines": "false",
    }  # fmt: skip
    overrides = [f"{key}={value}" for key, value in settings.items()]
    command = [sys.executable, "-m", "llmcls.train", "recipes/quickstart_tiny.yaml", *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{case}:\n{done.stderr[-2000:]}")
    (found,) = (folder / "outputs").glob(f"*/case{number}/run_0")
    return open_run(RunFolder(found))


def measure(case: Case, run: FinishedRun, folder: Path, graphs: bool) -> list[str]:
    """Export in every wanted form; the cells of the table."""
    cells = [case.model, case.weights, case.trained, case.task]
    proof, allowed, word = proven(run, folder / "plain", ExportOptions())
    cells += [f"{proof.largest_difference:.1e}{word}", f"{allowed:.0e}", f"{proof.changed_decisions}/{proof.rows}"]
    return cells + [graph(run, folder, int8) if graphs and int8 in case.graphs else "" for int8 in (False, True)]


def graph(run: FinishedRun, folder: Path, int8: bool) -> str:
    """What the proof of an ONNX graph found, as a cell of the table."""
    proof, allowed, word = proven(run, folder / f"graph{int8}", ExportOptions(onnx=True, int8=int8))
    assert proof.speed is not None
    ratio = proof.speed.onnx / proof.speed.pytorch
    changed = f"{proof.changed_decisions}/{proof.rows} changed"
    more = f"{word} (allowed {allowed:.0e})" if word else ""
    return f"{proof.largest_difference:.1e}{more}, {changed}, {ratio:.2f} times as fast"


def proven(run: FinishedRun, folder: Path, options: ExportOptions) -> tuple[Proof, float, str]:
    """Export; what the proof found, what was allowed, and a word if that is refused without a larger tolerance.

    Raises
    ------
    UserError
        If it is refused for another reason.
    """
    try:
        proof = export_run(run, folder, options)
    except NotTheSameError as error:
        return export_run(run, folder, replace(options, tolerance=1.0)), error.proof.tolerance, ", refused"
    return proof, proof.tolerance, ""


def known_rows() -> dict[tuple[str, ...], list[str]]:
    """The rows that bench/results.md has already, by model, weights, way of training and task."""
    path = ROOT / "bench" / "results.md"
    section = path.read_text(encoding="utf-8").partition(f"\n## {TITLE}\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in row] for row in rows]
    return {tuple(row[:4]): row for row in cells[1:]}


def main() -> None:
    """Train and export every case, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("smollm2", help="a folder or a name on the hub")
    parser.add_argument("gemma3", help="a folder or a name on the hub")
    parser.add_argument("--only", help="numbers of cases, from 1")
    parser.add_argument("--no-graphs", action="store_true", help="no ONNX graphs")
    a = parser.parse_args()
    logging.disable(logging.INFO)
    chosen = [int(n) for n in a.only.split(",")] if a.only else range(1, len(CASES) + 1)
    about = (
        f"{machine()}. Three training steps, {SIZES['validation']} validation rows, exported as float32 and compared "
        "with the stored predictions of the run, in a process that cannot import llmcls. SmolLM2 has 135 million "
        "weights, Gemma 3 has 270 million; the encoder is a BERT of four layers with random weights. The speed of an "
        "ONNX graph is relative to PyTorch in the same process, on the same texts, in turns. An empty cell was not "
        "measured."
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tables(folder / "data")
        write_encoder(folder / "encoder", a.smollm2)
        models = {"SmolLM2": a.smollm2, "Gemma 3": a.gemma3, "encoder": str(folder / "encoder")}
        for number in chosen:
            case = CASES[number - 1]
            run = train(case, models[case.model], folder, number)
            # Each case leaves gigabytes.
            with tempfile.TemporaryDirectory(dir=folder) as exports:
                row = measure(case, run, Path(exports), not a.no_graphs)
            shutil.rmtree(run.folder.path.parent)
            print(" | ".join(row), flush=True)
            # Read again, because another process may measure other cases.
            rows = known_rows() | {tuple(row[:4]): row}
            keys = [(c.model, c.weights, c.trained, c.task) for c in CASES]
            table = [list(HEADER), ["---"] * len(HEADER), *(rows[key] for key in keys if key in rows)]
            write_section(TITLE, [about, "", *("| " + " | ".join(cells) + " |" for cells in table)])


if __name__ == "__main__":
    main()
