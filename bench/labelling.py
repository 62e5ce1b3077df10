"""How many labels a choice by `llmcls label` saves against random choice: a simulation on banking77 and Reuters.

    BANKING77_DIR=... REUTERS_DIR=... python bench/labelling.py MODEL --cache FOLDER [--layers 4] [--held-out]

MODEL is a folder or a name on the hub. The states of the frozen model are read once and kept in FOLDER; with
``--layers`` those of its first layers, which is quicker. Training the model again after every few labels would take
days, so the classifier of the simulation is a linear probe on the states. It starts with randomly chosen labels, asks
for more, and is fitted again; three seeds. The way of choosing was decided on a held-out part of the pool
(``--held-out`` scores that); the figures are on test. Writes bench/results.md and two pictures in docs/images.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.frozen import frozen_states  # noqa: E402
from bench.material import machine, write_section  # noqa: E402
from llmcls.data.labels import LabelSpace, label_space, multi_hot  # noqa: E402
from llmcls.data.tables import read_table  # noqa: E402
from llmcls.evaluation.acquisition import candidates, doubt, spread  # noqa: E402
from llmcls.evaluation.learning_curve import Estimate  # noqa: E402
from llmcls.evaluation.thresholds import apply_thresholds, fixed_thresholds  # noqa: E402
from llmcls.recipe.load import load_recipe  # noqa: E402
from llmcls.recipe.schema import Recipe  # noqa: E402
from llmcls.results.curve_picture import write_pictures  # noqa: E402

SEEDS = (1, 2, 3)
# One part in so many of the pool is held out to decide how to choose.
HELD_OUT = 4
# Inverse strength of the probe's penalty, in the middle of those of llmcls/evaluation/probe.py.
STRENGTH = 100.0
# The mean of the states, whatever the recipe trains; and an adapter as small as possible, for none is trained here.
PLAIN = (
    "model.pooling=mean", "model.bidirectional=false", "model.head_init=random", "model.torch_dtype=bfloat16",
    "model.lora_target_modules=[q_proj]", "model.lora_layers=[0]",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """A set and how it is labelled.

    Attributes
    ----------
    name, folder, recipe : str
        The folder is given by an environment variable.
    overrides : tuple of str
    sizes : tuple of int
        Labels after each step.
    metric : str
        For the table.
    """

    name: str
    folder: str
    recipe: str
    overrides: tuple[str, ...]
    sizes: tuple[int, ...]
    metric: str


TASKS = (
    Task(
        "banking77", "BANKING77_DIR", "banking77.yaml",
        ("data.prompt=null", "data.max_length=96", "data.train_rows=5000"),
        (100, 200, 300, 450, 650, 900, 1250, 1700), "accuracy",
    ),
    Task(
        "Reuters", "REUTERS_DIR", "reuters_lora.yaml",
        ("data.max_length=32", "data.train_rows=3000"),
        (50, 100, 150, 200, 300, 400, 600, 800), "micro-F1",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Split:
    """States and label values of some texts: float32 [rows, hidden], and as in `llmcls.data.splits.Split`."""

    states: np.ndarray
    values: np.ndarray


def task_recipe(task: Task, model: str) -> Recipe:
    """The recipe that reads the states."""
    overrides = [f"model.model_name={model}", "report_to=[]", *PLAIN, *task.overrides]
    return load_recipe(ROOT / "recipes" / task.recipe, overrides)


def first_layers(model: str, layers: int, cache: Path) -> str:
    """A copy of a pretrained model with its first layers, in the cache."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = cache / f"{Path(model).name}-{layers}-layers"
    if not (folder / "tokenizer_config.json").is_file():
        AutoModelForCausalLM.from_pretrained(model, num_hidden_layers=layers, dtype="auto").save_pretrained(folder)
        AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return str(folder)


def read_states(recipe: Recipe, cache: Path, held_out: bool) -> tuple[LabelSpace, Split, Split]:
    """Labels, the pool with each text once, and what is scored; the states come from the cache, or go there."""
    names = ("train",) if held_out else ("train", "test")
    kinds = ("states", "values", "digests")
    files = {(name, kind): cache / f"{name}.{kind}.npy" for name in names for kind in kinds}
    if not all(file.is_file() for file in files.values()):
        cache.mkdir(parents=True, exist_ok=True)
        inputs, states_of, _ = frozen_states(recipe)
        for split in (inputs.train_split, inputs.test_split):
            if split is None or split.name not in names or files[split.name, "states"].is_file():
                continue
            states = states_of(split)
            np.save(files[split.name, "values"], split.known_labels)
            np.save(files[split.name, "digests"], split.known_digests)
            # Last, so that what is there is complete.
            np.save(files[split.name, "states"], states)
    labels = label_space(recipe, read_table(recipe.data.train_csv, "data.train_csv", recipe.data))
    found = {key: np.load(file) for key, file in files.items()}
    _, rows = np.unique(found["train", "digests"], return_index=True)
    rows = np.random.default_rng(0).permutation(rows)
    part = len(rows) // HELD_OUT if held_out else 0

    def split(name: str, chosen: np.ndarray | slice) -> Split:
        return Split(found[name, "states"][chosen], found[name, "values"][chosen])

    return labels, split("train", rows[part:]), split("train", rows[:part]) if held_out else split("test", slice(None))


def features(pool: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features of the probe: states with mean 0 and the same deviation over the pool, of mean square 1 in all."""
    mean, scale = pool.mean(axis=0), pool.std(axis=0) * np.sqrt(pool.shape[1])
    return (pool - mean) / scale, (others - mean) / scale


def fit(x: np.ndarray, values: np.ndarray, labels: LabelSpace) -> Callable[[np.ndarray], np.ndarray]:
    """Fit logistic regression; the result gives probabilities, float32 [rows, labels]."""
    from sklearn.linear_model import LogisticRegression

    marks = multi_hot(values, len(labels.names))

    def regression(classes: np.ndarray) -> LogisticRegression:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return LogisticRegression(C=STRENGTH, tol=1e-3, max_iter=60).fit(x, classes)

    if not labels.multi_label:
        model = regression(values)

        def probabilities(rows: np.ndarray) -> np.ndarray:
            # A class without a label yet has probability 0.
            found = np.zeros((len(rows), len(labels.names)), dtype=np.float32)
            found[:, model.classes_] = model.predict_proba(rows)
            return found

        return probabilities
    models = [regression(column) if column.any() and not column.all() else None for column in marks.T]
    frequency = (marks.sum(axis=0) + 0.5) / (len(marks) + 1)

    def each(rows: np.ndarray) -> np.ndarray:
        columns = [
            np.full(len(rows), frequency[i]) if model is None else model.predict_proba(rows)[:, 1]
            for i, model in enumerate(models)
        ]
        return np.stack(columns, axis=1).astype(np.float32)

    return each


def score(probabilities: np.ndarray, values: np.ndarray, labels: LabelSpace) -> float:
    """Accuracy, or micro-F1 with thresholds of 0.5; with one class per row, the two are the same."""
    given = apply_thresholds(probabilities, fixed_thresholds(len(labels.names)), labels)
    true = multi_hot(values, len(labels.names))
    return float(2 * (given & true).sum() / (given.sum() + true.sum()))


def choose_random(states: np.ndarray, amount: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Rows drawn at random."""
    return np.random.default_rng(seed).choice(len(states), count, replace=False)


def choose_unsure(states: np.ndarray, amount: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The most unsure rows, however alike."""
    return np.argsort(-amount, kind="stable")[:count]


def choose_spread(states: np.ndarray, amount: np.ndarray, count: int, seed: int) -> np.ndarray:
    """What `llmcls label` chooses."""
    among = candidates(amount, count)
    chosen: np.ndarray = among[spread(states[among], amount[among], count, seed).rows]
    return chosen


CHOICES = {"llmcls label": choose_spread, "unsure only": choose_unsure, "random": choose_random}


def simulate(task: Task, labels: LabelSpace, pool: Split, scored: Split) -> dict[str, np.ndarray]:
    """The score after each step, by choice: float [seeds, steps]."""
    x, others = features(pool.states, scored.states)
    thresholds = fixed_thresholds(len(labels.names))
    found = {}
    for name, choose in CHOICES.items():
        start, curves = time.perf_counter(), []
        for seed in SEEDS:
            known, curve = np.zeros(len(x), dtype=bool), []
            known[np.random.default_rng(seed).choice(len(x), task.sizes[0], replace=False)] = True
            for step, size in enumerate(task.sizes):
                probabilities = fit(x[known], pool.values[known], labels)
                curve.append(score(probabilities(others), scored.values, labels))
                more = task.sizes[step + 1] - size if step + 1 < len(task.sizes) else 0
                if more:
                    rest = np.flatnonzero(~known)
                    amount = doubt(probabilities(x[rest]), thresholds, labels).amount
                    known[rest[choose(pool.states[rest], amount, more, seed)]] = True
            curves.append(curve)
        found[name] = np.array(curves)
        shown = " ".join(f"{value:.3f}" for value in found[name].mean(axis=0))
        print(f"{task.name}, {name}: {shown}  ({time.perf_counter() - start:.0f} s)", flush=True)
    return found


def needed(sizes: tuple[int, ...], curve: np.ndarray, target: float) -> str:
    """Labels at which a curve reaches a score, between its steps; after the last step at which it is below it."""
    below = np.flatnonzero(curve < target)
    last = int(below[-1]) if len(below) else -1
    if last == len(sizes) - 1:
        return f"over {sizes[-1]:,}"
    if last < 0:
        return f"{sizes[0]:,}"
    share = (target - curve[last]) / (curve[last + 1] - curve[last])
    return f"{sizes[last] + share * (sizes[last + 1] - sizes[last]):,.0f}"


def table(task: Task, curves: dict[str, np.ndarray]) -> list[str]:
    """Labels needed for what random choice reaches."""
    lines = [f"| {task.name}: {task.metric} | {' | '.join(curves)} |", "|---" * (len(curves) + 1) + "|"]
    means = {name: curve.mean(axis=0) for name, curve in curves.items()}
    for size, target in list(zip(task.sizes, means["random"], strict=True))[2:]:
        cells = [f"{size:,}" if name == "random" else needed(task.sizes, means[name], target) for name in curves]
        lines.append(f"| {target:.3f} | {' | '.join(cells)} |")
    return lines


def draw(task: Task, curves: dict[str, np.ndarray], folder: Path) -> None:
    """Write the picture of the curves, with the lowest and the highest seed as a band."""
    lines = {
        name: [Estimate(float(c.mean()), float(c.min()), float(c.max())) for c in curve.T]
        for name, curve in curves.items()
    }
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "labels"
        write_pictures(path, f"{task.name}, {task.metric} on test", list(task.sizes), lines, None)
        target = folder / f"labels-{task.name.lower()}.svg"
        target.write_bytes(path.with_suffix(".svg").read_bytes())


def main() -> None:
    """Simulate, print the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--cache", required=True, type=Path, help="folder for the states of the model")
    parser.add_argument("--layers", type=int, help="read the states of so many layers")
    parser.add_argument("--held-out", action="store_true", help="score a held-out part of the pool, and write nothing")
    a = parser.parse_args()
    read = f"the first {a.layers} layers of {Path(a.model).name}" if a.layers else Path(a.model).name
    lines = [f"`bench/labelling.py` on {machine()}. A linear probe on the states of {read}, frozen; mean of 3 seeds."]
    for task in TASKS:
        if task.folder not in os.environ:
            sys.exit(f"error: {task.folder} is not set; set it to the folder of train.csv, validation.csv and test.csv")
        model = first_layers(a.model, a.layers, a.cache) if a.layers else a.model
        recipe = task_recipe(task, model)
        # Another recipe reads other states.
        made_from = hashlib.sha256(repr((recipe.data, recipe.model)).encode()).hexdigest()[:8]
        labels, pool, scored = read_states(recipe, a.cache / f"{task.name}-{made_from}", a.held_out)
        curves = simulate(task, labels, pool, scored)
        where = "held-out" if a.held_out else "test"
        lines += ["", f"{len(pool.values):,} texts in the pool, {len(scored.values):,} {where} texts.", ""]
        lines += table(task, curves)
        if not a.held_out:
            draw(task, curves, ROOT / "docs" / "images")
    print("\n".join(lines))
    if not a.held_out:
        write_section("Labels that a choice saves", lines)


if __name__ == "__main__":
    main()
