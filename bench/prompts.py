"""What a frozen decoder knows of a text depends on how it reads it: a linear probe on each way of reading.

    BANKING77_DIR=... python bench/prompts.py MODEL [MODEL ...]
    REUTERS_DIR=... python bench/prompts.py MODEL [MODEL ...] --recipe recipes/reuters_prompt.yaml

MODEL is a folder or a name on the hub. A probe costs one forward pass over the texts and no training, so prompts are
cheap to try. Every figure is on the validation rows. Writes bench/results.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from sklearn.metrics import f1_score

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.frozen import frozen_states  # noqa: E402
from bench.material import machine, write_section  # noqa: E402
from llmcls.evaluation.probe import Evidence, fit_probe  # noqa: E402
from llmcls.recipe.load import load_recipe  # noqa: E402
from llmcls.recipe.schema import Recipe  # noqa: E402
from llmcls.training.warm_start import label_split  # noqa: E402

# How the model reads a text without a prompt: pooling, bidirectional attention.
POOLINGS = {"last token": ("last", False), "mean": ("mean", False), "mean, bidirectional": ("mean", True)}
# By `data.dataset_name`: prompts whose last token is read.
PROMPTS = {
    "banking77_10shot": {
        "last token of a prompt, in one word": 'This text: "{text}" means in one word: "',
        "last token of a prompt": '"{text}" The bank customer asks about the "',
        "last token of a prompt, the text twice": (
            'Bank customer: "{text}" Question: "{text}" The bank customer asks about the "'
        ),
    },
    "reuters10": {
        "last token of a prompt, in one word": 'This text: "{text}" means in one word: "',
        "last token of a prompt": "{text}\nThis news is about",
        "last token of a prompt, topics": "{text}\n\nTopics of this news:",
    },
}


def score(recipe: Recipe) -> tuple[float, float]:
    """Accuracy or micro-F1 on validation of a probe on the states of a frozen model, and its tokens per text."""
    inputs, states, has_bias = frozen_states(recipe)
    assert inputs.validation_split is not None
    train, validation = inputs.train_split, inputs.validation_split
    evidence = Evidence(states(train), train.known_labels, states(label_split(recipe, inputs)))
    logits = fit_probe(evidence, inputs.labels, has_bias).logits(states(validation))
    tokens = float(train.lengths.mean())
    if recipe.model.problem_type != "multi_label_classification":
        return float((logits.argmax(axis=1) == validation.known_labels).mean()), tokens
    return float(f1_score(validation.known_labels, logits > 0, average="micro")), tokens


def main() -> None:
    """Measure every way of reading with every model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--recipe", default=str(ROOT / "recipes" / "banking77_10shot.yaml"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the recipe")
    a = parser.parse_args()
    named = load_recipe(a.recipe, a.set)
    prompts = PROMPTS.get(named.data.dataset_name, {})
    ways: dict[str, tuple[str, bool, str | None]] = {way: (*how, None) for way, how in POOLINGS.items()}
    ways |= {way: ("last", False, prompt) for way, prompt in prompts.items()}
    measure = "micro-F1" if named.model.problem_type == "multi_label_classification" else "accuracy"
    rows = []
    for model in a.models:
        for way, (pooling, bidirectional, prompt) in ways.items():
            overrides = [f"model.model_name={model}", f"model.pooling={pooling}", f"data.prompt={json.dumps(prompt)}"]
            overrides += [f"model.bidirectional={json.dumps(bidirectional)}", "data.test_csv=null"]
            recipe = load_recipe(a.recipe, [*overrides, *a.set])
            start = time.perf_counter()
            found, tokens = score(recipe)
            rows.append(f"| {Path(model).name} | {way} | {tokens:.0f} | {found:.3f} |")
            print(rows[-1], f"{time.perf_counter() - start:.0f} s", flush=True)
    write_section(
        f"A linear probe on the frozen model: {Path(a.recipe).stem}",
        [
            f"`bench/prompts.py` on {machine()}. Validation {measure} of a probe, by how the model reads a text.",
            "",
            f"| model | what the head reads | tokens a text | {measure} |",
            "|---|---|---|---|",
            *rows,
            "",
            *(f"- {way}: `{prompt}`".replace("\n", "\\n") for way, prompt in prompts.items()),
        ],
    )


if __name__ == "__main__":
    main()
