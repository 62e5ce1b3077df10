"""What the races run on: a sample of Reuters with story-llama where they are given, else the quickstart's set."""

from __future__ import annotations

import csv
import os
import random
import statistics
from dataclasses import dataclass
from pathlib import Path

from llmcls.datasets.products import TOPICS, make_corpus, write_data
from llmcls.model.tiny import write_tiny_llama
from llmcls.recipe.load import load_recipe
from llmcls.recipe.schema import Recipe

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Material:
    """Files of one race. name: for the table."""

    name: str
    model: str
    train: Path
    test: Path
    text_fields: list[str]
    labels: list[str]
    max_length: int

    def recipe(self, *overrides: str) -> Recipe:
        """The Reuters recipe on this material."""
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
    """Write a sample of ``rows`` training and ``test_rows`` test texts to ``folder``.

    With ``uniform``, only texts of at least that many tokens are taken, and cut to it: all of one length.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source, model = os.environ.get("REUTERS_DIR"), os.environ.get("REUTERS_MODEL")
    if source and model:
        found = Material(
            "Reuters", model, Path(source, "train.csv"), Path(source, "test.csv"), ["title", "body"], [], 0
        )
        with found.train.open(encoding="utf-8", newline="") as file:
            header = next(csv.reader(file))
        found.labels = [c for c in header if c not in ("uid", "id", "title", "body", "text")]
    else:
        write_data(folder / "all", 0, {"train": 2 * rows, "validation": 10, "test": test_rows})
        model = str(folder / "tiny-llama")
        write_tiny_llama(Path(model), make_corpus(2000, 0), 0, 200)
        found = Material(
            "products (quickstart)", model, folder / "all" / "train.csv", folder / "all" / "test.csv",
            ["title", "description"], list(TOPICS), 0,
        )  # fmt: skip
    found.max_length = uniform or max_length
    tokenizer = None
    if uniform:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(found.model)
    for split, count in (("train", rows), ("test", test_rows)):
        with getattr(found, split).open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        random.Random(0).shuffle(lines)
        if tokenizer is not None and split == "train":
            texts = ["\n".join(line[f] for f in found.text_fields if line[f]) for line in lines]
            lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
            lines = [line for line, length in zip(lines, lengths, strict=True) if length >= uniform]
        chosen = [lines[i % len(lines)] | {"uid": str(i)} for i in range(count)] if tokenizer else lines[:count]
        path = folder / f"{split}.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(chosen[0]))
            writer.writeheader()
            writer.writerows(chosen)
        setattr(found, split, path)
    return found


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """The median over rounds of ours by theirs, each pair run right after each other."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def write_section(title: str, lines: list[str]) -> None:
    """Replace one section of bench/results.md, or add it."""
    path = ROOT / "bench" / "results.md"
    text = (
        path.read_text(encoding="utf-8") if path.exists() else "# Measured\n\nWritten by the scripts of this folder.\n"
    )
    before, _, rest = text.partition(f"\n## {title}\n")
    after = rest.partition("\n## ")
    tail = f"\n## {after[2]}" if after[2] else ""
    body = "\n".join(["", f"## {title}", "", *lines, ""])
    path.write_text(before.rstrip("\n") + "\n" + body + tail, encoding="utf-8", newline="\n")


def machine() -> str:
    """What the figures were taken on."""
    import platform

    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return f"{device}, {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}"
