"""Data and model of the comparisons: a sample of Reuters with a given model, or the data of the quickstart."""

from __future__ import annotations

import csv
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmcls.common.files import replacing
from llmcls.datasets.products import TOPICS, make_corpus, write_data
from llmcls.model.tiny import write_tiny_llama
from llmcls.recipe.load import load_recipe
from llmcls.recipe.schema import Recipe

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Material:
    """Data and model of one comparison.

    Attributes
    ----------
    name : str
        For the table.
    model : str
        Folder or name of the pretrained model.
    train, test : Path
        CSV files.
    text_fields, labels : list of str
        Their text columns and label columns.
    max_length : int
        Tokens per text.
    """

    name: str
    model: str
    train: Path
    test: Path
    text_fields: list[str]
    labels: list[str]
    max_length: int

    def recipe(self, *overrides: str) -> Recipe:
        """The recipe reuters_lora.yaml with these files and this model."""
        files = {"train_csv": self.train, "val_csv": "", "test_csv": self.test}
        os.environ.setdefault("REUTERS_DIR", ".")
        return load_recipe(
            ROOT / "recipes" / "reuters_lora.yaml",
            [
                *(f"data.{key}={value}" for key, value in files.items()),
                f"data.text_fields={self.text_fields}",
                f"data.label_columns={self.labels}",
                f"data.max_length={self.max_length}",
                f"model.model_name={self.model}",
                "report_to=[]",
                "train_metrics_rows=0",
                *overrides,
            ],
        )


def prepare(folder: Path, rows: int, test_rows: int, max_length: int = 512, uniform: int | None = None) -> Material:
    """Write a sample of the data as CSV files.

    Reuters and a model are used if REUTERS_DIR and REUTERS_MODEL are set; otherwise both are generated.

    Parameters
    ----------
    folder : Path
        Where to write.
    rows, test_rows : int
        Number of training and test texts.
    max_length : int
        Tokens per text.
    uniform : int, optional
        Give all training texts this number of tokens: only texts that are at least as long are used, and truncated.

    Returns
    -------
    Material
    """
    folder.mkdir(parents=True, exist_ok=True)
    source, model = os.environ.get("REUTERS_DIR"), os.environ.get("REUTERS_MODEL")
    if source and model:
        material = Material(
            "Reuters", model, Path(source, "train.csv"), Path(source, "test.csv"), ["title", "body"], [], 0
        )
        with material.train.open(encoding="utf-8", newline="") as file:
            header = next(csv.reader(file))
        material.labels = [c for c in header if c not in ("uid", "id", "title", "body", "text")]
    else:
        write_data(folder / "all", 0, {"train": 2 * rows, "validation": 10, "test": test_rows})
        model = str(folder / "tiny-llama")
        write_tiny_llama(Path(model), make_corpus(2000, 0), 0, 200)
        material = Material(
            "products (quickstart)", model, folder / "all" / "train.csv", folder / "all" / "test.csv",
            ["title", "description"], list(TOPICS), 0,
        )  # fmt: skip
    material.max_length = uniform or max_length
    tokenizer = None
    if uniform:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(material.model)
    for split, count in (("train", rows), ("test", test_rows)):
        with getattr(material, split).open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        random.Random(0).shuffle(lines)
        if tokenizer is not None and split == "train":
            texts = ["\n".join(line[f] for f in material.text_fields if line[f]) for line in lines]
            lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
            lines = [line for line, length in zip(lines, lengths, strict=True) if length >= uniform]
        chosen = [lines[i % len(lines)] | {"uid": str(i)} for i in range(count)] if tokenizer else lines[:count]
        path = folder / f"{split}.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(chosen[0]))
            writer.writeheader()
            writer.writerows(chosen)
        setattr(material, split, path)
    return material


def prepare_messages(folder: Path, rows: int, test_rows: int) -> Material | None:
    """Write a sample of Banking77, whose texts are messages of customers, with a column for each label.

    None if BANKING77_DIR or REUTERS_MODEL, the model, is not set.
    """
    source, model = os.environ.get("BANKING77_DIR"), os.environ.get("REUTERS_MODEL")
    if not source or not model:
        return None
    folder.mkdir(parents=True)
    found: dict[str, list[dict[str, str]]] = {}
    for split in ("train", "test"):
        with Path(source, f"{split}.csv").open(encoding="utf-8", newline="") as file:
            found[split] = list(csv.DictReader(file))
        random.Random(0).shuffle(found[split])
    labels = sorted({line["category"] for line in found["train"]})
    for split, count in (("train", rows), ("test", test_rows)):
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["uid", "text", *labels])
            for i, line in enumerate(found[split][:count]):
                writer.writerow([i, line["text"], *(int(line["category"] == label) for label in labels)])
    return Material("Banking77", model, folder / "train.csv", folder / "test.csv", ["text"], labels, 512)


def printed_result(command: list[str], contestant: str) -> dict[str, float]:
    """Run a command, and return the JSON of its last line; the script ends with the error of a command that failed."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{contestant} failed:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def kept(path: Path, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The result that lies in a JSON file; if there is none, it is measured and written there."""
    if not path.exists():
        found = measure()
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(found), encoding="utf-8")
    result: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return result


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """The median over rounds of ours / theirs; both sides of a round are measured directly after each other."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def write_section(title: str, lines: list[str]) -> None:
    """Replace a section of bench/results.md, or add it at the end."""
    path = ROOT / "bench" / "results.md"
    text = (
        path.read_text(encoding="utf-8") if path.exists() else "# Results\n\nWritten by the scripts in this folder.\n"
    )
    before, _, rest = text.partition(f"\n## {title}\n")
    after = rest.partition("\n## ")
    tail = f"\n## {after[2]}" if after[2] else ""
    body = "\n".join(["", f"## {title}", "", *lines, ""])
    path.write_text(before.rstrip("\n") + "\n" + body + tail, encoding="utf-8", newline="\n")


def now() -> float:
    """The time in seconds, when a GPU has finished its work."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def machine() -> str:
    """The device and the versions of a measurement."""
    import platform

    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return f"{device}, {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}"
