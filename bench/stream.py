"""Does the memory of a prediction grow with the number of texts? A generator of 200,000 texts through `Classifier`.

    python bench/stream.py [--texts 200000]

The run is trained in a moment on the data of the quickstart; the texts are of different lengths and made one at a time.
Writes bench/results.md.
"""

from __future__ import annotations

import argparse
import gc
import logging
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.material import machine, write_section  # noqa: E402
from llmcls import Classifier  # noqa: E402
from llmcls.datasets.products import make_corpus, write_data  # noqa: E402
from llmcls.model.tiny import write_tiny_llama  # noqa: E402

PARTS = 10


def trained(folder: Path) -> Path:
    """A run that was trained for three steps in another process, so that its memory is not counted."""
    write_data(folder / "data", 0, {"train": 60, "validation": 20, "test": 10})
    write_tiny_llama(folder / "tiny-llama", make_corpus(300, 0), 0, 3)
    overrides = [
        *(f"data.{key}={folder / 'data' / file}.csv" for key, file in (
            ("train_csv", "train"), ("val_csv", "validation"), ("test_csv", "test"),
        )),
        f"model.model_name={folder / 'tiny-llama'}", f"exp.output_root={folder / 'outputs'}", "data.prompt=null",
        "train.max_steps=3", "train.eval_steps=3", "train.report_to=[]", "exp.seeds=[1]", "exp.baselines=false",
    ]  # fmt: skip
    command = [sys.executable, "-m", "llmcls.train", "recipes/quickstart_tiny.yaml", *overrides]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder / "outputs" / "tiny-llama" / "products" / "run_0"


def texts(count: int) -> Iterator[str]:
    """Texts of 1 to 40 words."""
    rng, words = random.Random(0), " ".join(make_corpus(50, 1)).split()
    for _ in range(count):
        yield " ".join(rng.choices(words, k=rng.randint(1, 40)))


def main() -> None:
    """Classify, watch the memory, print and write it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--texts", type=int, default=200_000)
    a = parser.parse_args()
    logging.disable(logging.INFO)
    process, held = psutil.Process(), []
    with tempfile.TemporaryDirectory() as name:
        classifier = Classifier.load(trained(Path(name)))
        start = time.perf_counter()
        for i, _ in enumerate(classifier.stream(texts(a.texts)), 1):
            if i % (a.texts // PARTS) == 0:
                gc.collect()
                held.append(process.memory_info().rss / 2**20)
                print(f"{i} texts, {held[-1]:.0f} MiB", flush=True)
        seconds = time.perf_counter() - start
    lines = [
        f"{machine()}. `Classifier.stream` over a generator of {a.texts:,} texts of 1 to 40 words, the tiny model of "
        f"the quickstart: {a.texts / seconds:.0f} texts/s.",
        "",
        f"| texts so far | {' | '.join(f'{(i + 1) * a.texts // PARTS:,}' for i in range(PARTS))} |",
        "|---|" + "---|" * PARTS,
        f"| memory of the process, MiB | {' | '.join(f'{m:.0f}' for m in held)} |",
        "",
        f"It was between {min(held):.0f} and {max(held):.0f} MiB.",
    ]
    print("\n".join(lines))
    write_section("Streaming", lines)


if __name__ == "__main__":
    main()
