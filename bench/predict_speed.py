"""Compare prediction with a plain evaluation loop in the order of the file, at batch 4 and 32.

    python bench/predict_speed.py [--rows 2000] [--rounds 3]

Both predict the same texts with the same trained adapter, and must predict the same labels. The time from tokenized
texts to probabilities on the host is measured. Reading and tokenizing are the same for both and not measured.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from bench.material import machine, median_ratio, prepare, write_section  # noqa: E402


def plain_loop(run: Any, split: Any, pad_token_id: int, batch_size: int) -> tuple[float, np.ndarray]:
    """Predict as a plain script does: a separate adapter, the order of the file, dynamic padding with a mask.

    Returns
    -------
    seconds : float
    probabilities : float32 [rows, labels]
    """
    from peft import PeftModel

    from llmcls.model.pretrained import load_pretrained

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base, _ = load_pretrained(run.recipe.model, run.labels, device)
    model = PeftModel.from_pretrained(base, str(run.folder.model)).to(device).eval()
    # The pooling of transformers looks for the last token that is not the pad id, so no text may end with this id.
    base.config.pad_token_id = pad_token_id
    out = []
    start = time.perf_counter()
    dtype = getattr(torch, run.recipe.model.torch_dtype)
    with torch.no_grad(), torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        for first in range(0, len(split), batch_size):
            texts = [split.tokens[i] for i in range(first, min(len(split), first + batch_size))]
            longest = max(map(len, texts))
            ids = torch.full((len(texts), longest), pad_token_id)
            mask = torch.zeros_like(ids)
            for i, text in enumerate(texts):
                ids[i, : len(text)] = torch.from_numpy(np.asarray(text, dtype=np.int64))
                mask[i, : len(text)] = 1
            logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
            out.append(torch.sigmoid(logits.float()).cpu())
    return time.perf_counter() - start, torch.cat(out).numpy()


def ours(run: Any, split: Any, pad_token_id: int) -> tuple[float, np.ndarray]:
    """Predict as `llmcls.predict` does between reading and writing; returns the same as `plain_loop`."""
    from accelerate import Accelerator

    from llmcls.evaluation.metrics import to_probabilities
    from llmcls.evaluation.scoring import make_scorer, score_split
    from llmcls.model.build import load_trained_classifier

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    classifier = load_trained_classifier(run.recipe, run.labels, run.folder.model, accelerator.device)
    model = accelerator.prepare_model(classifier, evaluation_mode=True)
    scorer = make_scorer(accelerator, model, run.labels, pad_token_id, run.recipe)
    start = time.perf_counter()
    probabilities = to_probabilities(score_split(scorer, split), run.labels.problem_type)
    return time.perf_counter() - start, probabilities


def main() -> None:
    """Train briefly, compare, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    a = parser.parse_args()
    logging.disable(logging.INFO)
    from accelerate import PartialState

    from llmcls.data.splits import tokenize_split
    from llmcls.data.tables import read_table
    from llmcls.engine.accelerator import open_accelerator
    from llmcls.model.pretrained import load_tokenizer
    from llmcls.results.finished_runs import open_run
    from llmcls.results.run_folder import ExperimentFolder
    from llmcls.train import train_seeds

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        material = prepare(folder, 2048, a.rows)
        recipe = material.recipe("num_train_epochs=1", "test_csv=", f"exp.output_root={folder / 'outputs'}")
        train_seeds(recipe, open_accelerator(recipe))
        run = open_run(ExperimentFolder.of(recipe).run(0))
        tokenizer = load_tokenizer(run.recipe.model)
        split = tokenize_split(
            read_table(material.test, "test"), "test", str(material.test), run.recipe, tokenizer, run.labels
        )
        assert PartialState().num_processes == 1
        pad = tokenizer.pad_token_id
        speeds: dict[str, list[float]] = {"llmcls": [], "plain loop, batch 4": [], "plain loop, batch 32": []}
        for number in range(a.rounds):
            answers = {}
            for contestant, batch in (("llmcls", 0), ("plain loop, batch 4", 4), ("plain loop, batch 32", 32)):
                seconds, found = plain_loop(run, split, pad, batch) if batch else ours(run, split, pad)
                speeds[contestant].append(len(split) / seconds)
                answers[contestant] = found
                print(f"round {number + 1}  {contestant:22}  {speeds[contestant][-1]:7.1f} texts/s", flush=True)
            for contestant, found in answers.items():
                different = int(((found >= 0.5) != (answers["llmcls"] >= 0.5)).any(axis=1).sum())
                difference = float(np.abs(found - answers["llmcls"]).max())
                assert different == 0, (
                    f"{contestant}: {different} rows have other labels (probabilities differ by {difference:.1e})"
                )
    lines = [
        f"{machine()}. {material.name}, {len(split)} test texts, max_length 512, float32 LoRA,",
        f"{a.rounds} rounds, taking turns; speedups are medians over rounds.",
        "",
        "| | texts/s in each round | speedup of llmcls |",
        "|---|---|---|",
    ]
    for contestant, found in speeds.items():
        ratio = "" if contestant == "llmcls" else f"{median_ratio(speeds['llmcls'], found):.2f}"
        lines.append(f"| {contestant} | {', '.join(f'{s:.1f}' for s in found)} | {ratio} |")
    lines += ["", "All contestants predicted the same labels for every text."]
    write_section("Prediction", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
