"""What a frozen decoder knows of a text depends on how it reads it: a linear probe on each way of reading.

    BANKING77_DIR=... python bench/prompts.py MODEL [MODEL ...] [--recipe RECIPE]

MODEL is a folder or a name on the hub. A probe costs one forward pass over the texts and no training, so prompts are
cheap to try. Every figure is on the validation rows. Writes bench/results.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.frozen import frozen_states  # noqa: E402
from bench.material import machine, write_section  # noqa: E402
from llmcls.evaluation.probe import Evidence, fit_probe  # noqa: E402
from llmcls.recipe.load import load_recipe  # noqa: E402
from llmcls.recipe.schema import Recipe  # noqa: E402
from llmcls.training.warm_start import label_split  # noqa: E402

# Ways of reading: pooling, bidirectional attention, prompt.
WAYS = {
    "last token": ("last", False, None),
    "mean": ("mean", False, None),
    "mean, bidirectional": ("mean", True, None),
    "last token of a prompt, in one word": ("last", False, 'This text: "{text}" means in one word: "'),
    "last token of a prompt": ("last", False, '"{text}" The bank customer asks about the "'),
    "last token of a prompt, the text twice": (
        "last", False, 'Bank customer: "{text}" Question: "{text}" The bank customer asks about the "',
    ),
}  # fmt: skip


def accuracy(recipe: Recipe) -> tuple[float, float]:
    """Validation accuracy of a probe on the states of a frozen model, and its tokens per text."""
    inputs, states, has_bias = frozen_states(recipe)
    assert inputs.validation_split is not None
    train, validation = inputs.train_split, inputs.validation_split
    evidence = Evidence(states(train), train.known_labels, states(label_split(recipe, inputs)))
    predicted = fit_probe(evidence, inputs.labels, has_bias).logits(states(validation)).argmax(axis=1)
    return float((predicted == validation.known_labels).mean()), float(train.lengths.mean())


def main() -> None:
    """Measure every way of reading with every model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--recipe", default=str(ROOT / "recipes" / "banking77_10shot.yaml"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the recipe")
    a = parser.parse_args()
    rows = []
    for model in a.models:
        for way, (pooling, bidirectional, prompt) in WAYS.items():
            overrides = [f"model.model_name={model}", f"model.pooling={pooling}", f"data.prompt={json.dumps(prompt)}"]
            overrides += [f"model.bidirectional={json.dumps(bidirectional)}", "data.test_csv=null", "max_length=256"]
            recipe = load_recipe(a.recipe, [*overrides, *a.set])
            start = time.perf_counter()
            score, tokens = accuracy(recipe)
            rows.append(f"| {Path(model).name} | {way} | {tokens:.0f} | {score:.3f} |")
            print(rows[-1], f"{time.perf_counter() - start:.0f} s", flush=True)
    prompts = [f"- {way}: `{prompt}`" for way, (_, _, prompt) in WAYS.items() if prompt]
    write_section(
        f"A linear probe on the frozen model: {Path(a.recipe).stem}",
        [
            f"`bench/prompts.py` on {machine()}. Validation accuracy of a probe, by how the model reads a text.",
            "",
            "| model | what the head reads | tokens a text | accuracy |",
            "|---|---|---|---|",
            *rows,
            "",
            *prompts,
        ],
    )


if __name__ == "__main__":
    main()
