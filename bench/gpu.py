"""Race on one GPU with the shapes of Llama-3.2-1B and Llama-3.1-8B and random weights.

    python bench/gpu.py [--shapes 1B 8B] [--steps 20] [--rounds 2] [--micro-batch-tokens 16384]

Texts have lognormal lengths (mean 300, sigma 0.9, at most 1,024 tokens). LoRA r 8 with dropout 0.05 on every linear
layer, without recomputation:

- training in bf16, 32 texts a step, against `Trainer` at 4 x 8 on the same texts;
- prediction in bf16, against a plain loop in the order of the file at batch 4 and 32, with the same adapter;
- both with frozen weights in 4 bits, against llmcls in bf16;
- the peak memory of training, against the one that a trace expects.

FLOPs are those that a step needs, as a share of what matrix products of 8,192 x 8,192 reach in the same process:

    LoRA training   4 N T + 4 x 2 L h sum(l^2) / 2      N body weights, T tokens, L layers, h width, l text lengths
    prediction      2 N T + 2 x 2 L h sum(l^2) / 2

A token takes 2 N in the forward pass and 2 N for the gradients of the inputs; gradients of frozen weights are not
computed. Causal attention takes half of 2 x 2 l^2 h per layer in the forward pass. Recomputation is not counted. In the
last layer, llmcls computes only keys and values of all tokens; for it, only those and the last tokens are counted.
Without a GPU, the script runs with a tiny shape on the CPU, to show that it works, and writes nothing.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from bench.material import machine, median_ratio, now, write_section  # noqa: E402

SHAPES: dict[str, dict[str, Any]] = {
    "1B": dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, head_dim=64),
    "8B": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, head_dim=128),
    "tiny": dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, head_dim=16),
}
LABELS, STEP_ROWS, WARM_UP = 10, 32, 3
# Epochs of llmcls, of which the median counts; its rivals, which take longer, are measured in one.
EPOCHS = 3
GIB = 2**30


@dataclass(frozen=True)
class Race:
    """What both sides train and predict.

    Attributes
    ----------
    folder : Path
        With the model in ``base``.
    shape : str
        A key of `SHAPES`.
    recipe : Recipe
    tokens : list of int32 [length]
    values : float32 [texts, labels]
    """

    folder: Path
    shape: str
    recipe: Any
    tokens: list[np.ndarray]
    values: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, int32 [texts]."""
        return np.array([len(text) for text in self.tokens], dtype=np.int32)


def write_model(folder: Path, shape: str) -> None:
    """Write a random model of a shape, in bf16, and a tokenizer."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from llmcls.datasets.products import make_corpus
    from llmcls.model.tiny import train_tokenizer

    small = shape == "tiny"
    config = LlamaConfig(
        **SHAPES[shape], num_key_value_heads=2 if small else 8, vocab_size=1024 if small else 128256,
        max_position_embeddings=8192, pad_token_id=0, num_labels=LABELS,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device()):
            model = LlamaForSequenceClassification(config)
    finally:
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    train_tokenizer(make_corpus(200, 0)).save_pretrained(folder)


def device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def measure_matmul() -> float:
    """FLOP/s of large bf16 matrix products, the median of five series that together keep a GPU busy for half a second.

    A GPU that has cooled down is faster than in training.
    """
    side, repeats = (8192, 70) if torch.cuda.is_available() else (512, 2)
    a, b = (torch.randn(side, side, device=device(), dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(5):
        start = now()
        for _ in range(repeats):
            a @ b
        seconds.append(now() - start)
    return repeats * 2 * side**3 / statistics.median(seconds)


def free_memory() -> None:
    """Give back what the contestant before has left on the GPU, and forget its peak."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float:
    """The most memory in use on the GPU since `free_memory`; not a number without a GPU."""
    return torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else float("nan")


def make_race(folder: Path, shape: str, four_bit: bool, steps: int, budget: int) -> Race:
    """Texts, and a recipe over the model in ``folder / "base"``.

    Parameters
    ----------
    folder : Path
    shape : str
    four_bit : bool
        Whether to store the frozen weights in 4 bits.
    steps : int
        Optimizer steps of an epoch.
    budget : int
        Tokens of a micro-batch.
    """
    from llmcls.recipe.load import load_recipe

    cap = 64 if shape == "tiny" else 1024
    recipe_file = folder / "recipe.yaml"
    recipe_file.write_text(
        f"data: {{dataset_name: lognormal, target_text_column: text, train_csv: none.csv, max_length: {cap},\n"
        f"  label_columns: [{', '.join(f'l{i}' for i in range(LABELS))}]}}\n"
        f"model: {{model_name: {folder / 'base'}, use_4bit: {str(four_bit).lower()}, lora_r: 8, lora_dropout: 0.05,\n"
        "  lora_target_modules: [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]}\n"
        f"train: {{batch_size: 4, gradient_accumulation_steps: 8, micro_batch_tokens: {budget}, report_to: [],\n"
        "  gradient_checkpointing: false}\n",
        encoding="utf-8",
    )
    rng = np.random.default_rng(0)
    mean, sigma, count = 300 * cap / 1024, 0.9, STEP_ROWS * steps
    # Tokens from 5 on: none is that of padding, at which the pooling of transformers would stop.
    lengths = rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, count).clip(8, cap).astype(np.int32)
    tokens = [rng.integers(5, 900, length, dtype=np.int32) for length in lengths]
    values = (rng.random((count, LABELS)) < 0.2).astype(np.float32)
    return Race(folder, shape, load_recipe(recipe_file), tokens, values)


@dataclass(frozen=True)
class Training:
    """A training of llmcls: the prepared model, and epochs over texts."""

    race: Race
    accelerator: Any
    labels: Any
    model: Any
    optimizer: Any

    def setup(self, tokens: list[np.ndarray]) -> Any:
        """The setup of a training on texts, as many as those of the race."""
        from llmcls.data.splits import Split
        from llmcls.engine.accelerator import unwrapped
        from llmcls.results.run_folder import RunFolder
        from llmcls.training.setup import TrainingSetup

        lengths = np.array([len(text) for text in tokens], dtype=np.int32)
        split = Split("train", "none.csv", tokens, lengths, self.race.values, None)
        budget, packs = self.race.recipe.train.micro_batch_tokens, unwrapped(self.model).packs
        return TrainingSetup(
            self.race.recipe, 0, RunFolder(self.race.folder), self.accelerator, self.labels, split, None, STEP_ROWS,
            packs, budget,
        )  # fmt: skip

    def epoch(self, setup: Any, number: int, most: int | None = None) -> float:
        """Seconds of an epoch, drawn by its number, or of its first steps."""
        from llmcls.data.batches import plan_epoch
        from llmcls.training.loop import collated, optimizer_step

        with collated(setup, plan_epoch(setup.train_split.lengths, setup.batches, 0, number), 0) as steps:
            start = now()
            for count, (step, batches) in enumerate(itertools.islice(steps, most)):
                optimizer_step(setup, self.model, self.optimizer, step, batches, count)
            return now() - start


def start_training(race: Race) -> Training:
    """Build and prepare the model of a race as training does."""
    from llmcls.data.labels import LabelSpace
    from llmcls.engine.accelerator import open_accelerator
    from llmcls.model.build import build_classifier
    from llmcls.training.optimizer import build_optimizer

    columns, accelerator = race.recipe.data.label_columns, open_accelerator(race.recipe)
    labels = LabelSpace(columns, columns, "multi_label_classification")
    torch.manual_seed(0)
    classifier = build_classifier(race.recipe, labels, accelerator.device)
    optimizer = build_optimizer(classifier, race.recipe, accelerator.device)
    model, optimizer = accelerator.prepare(classifier, optimizer)
    model.train()
    return Training(race, accelerator, labels, model, optimizer)


def measure_ours(race: Race) -> tuple[dict[str, float], dict[str, Any], np.ndarray]:
    """Train and predict with llmcls.

    Returns
    -------
    dict
        Seconds of "training" an epoch and of "predicting" its texts, "peak" and "traced" memory in GiB, "tokens" of the
        largest micro-batch, "passes" a step, and whether the model "packs".
    dict
        The trained weights by name.
    float32 [texts, labels]
        The predicted logits.
    """
    from llmcls.data.batches import plan_epoch
    from llmcls.engine.full_state import trained_weights
    from llmcls.evaluation.scoring import make_scorer, score_split
    from llmcls.model.pretrained import load_config
    from llmcls.model.stand_in import kind_of
    from llmcls.model.step_trace import MicroBatch, StepTracer

    recipe, lengths, training = race.recipe, race.lengths, start_training(race)
    accelerator, model, labels, setup = (
        training.accelerator,
        training.model,
        training.labels,
        training.setup(race.tokens),
    )

    def epoch(number: int, most: int | None = None) -> float:
        return training.epoch(setup, number, most)

    epoch(0, WARM_UP)
    found = {
        "training": statistics.median(epoch(number) for number in range(1, EPOCHS + 1)),
        "peak": peak_gib(),
        "packs": float(setup.packed),
    }
    planned = [
        (int(lengths[rows].sum()), len(step.micro_batches[0]) > 1, tuple(int(n) for n in lengths[rows]))
        for number in range(1, EPOCHS + 1)
        for step in plan_epoch(lengths, setup.batches, 0, number)
        for rows in step.micro_batches[0]
    ]
    most, accumulates, largest = max(planned)
    tracer = StepTracer(recipe, load_config(recipe.model, labels), kind_of(accelerator.device))
    traced = tracer.cost(MicroBatch(largest, accumulates=accumulates)).peak / GIB
    found |= {"traced": traced, "tokens": float(most), "passes": len(planned) / EPOCHS / (len(lengths) / STEP_ROWS)}
    model.eval()
    scorer = make_scorer(accelerator, model, labels, 0, recipe)
    times = []
    for _ in range(EPOCHS + 1):
        start = now()
        logits = score_split(scorer, setup.train_split)
        times.append(now() - start)
    found["predicting"] = statistics.median(times[1:])
    weights = trained_weights(accelerator, model)
    accelerator.free_memory()
    return found, weights, logits


def measure_plain(race: Race, weights: dict[str, Any], logits: np.ndarray) -> dict[str, float]:
    """Train with `Trainer`, and predict with a plain loop after loading the weights that llmcls trained.

    Returns
    -------
    dict
        Seconds of "training" an epoch at 4 x 8 and of "predicting 4" and "predicting 32", the batch size, "peak" memory
        in GiB, and how far the logits are from those of llmcls: "off", relative to the largest, and the share of
        "changed" decisions.
    """
    from bench.plain_trainer import plain_model, time_trainer

    model = plain_model(race.recipe, 0).to(device())
    found = {"training": time_trainer(model, race.recipe, race.tokens, race.values, 4, race.folder / "trainer")}
    found["peak"] = peak_gib()
    unexpected = model.load_state_dict({n.removeprefix("model."): w for n, w in weights.items()}, strict=False)
    assert not unexpected.unexpected_keys, unexpected.unexpected_keys
    model.eval()
    for batch_size in (4, 32):
        plain_epoch(model, race.tokens[: 4 * batch_size], batch_size)
        start = now()
        plain = plain_epoch(model, race.tokens, batch_size)
        found[f"predicting {batch_size}"] = now() - start
    found["off"] = float(np.abs(plain - logits).max() / np.abs(plain).max())
    found["changed"] = float(((plain > 0) != (logits > 0)).mean())
    return found


@torch.no_grad()
def plain_epoch(model: Any, tokens: list[np.ndarray], batch_size: int) -> np.ndarray:
    """Logits of texts in their order, padded to the longest text of their batch; float32 [texts, labels]."""
    out, kind, pad = [], device().type, model.config.pad_token_id
    with torch.autocast(kind, dtype=torch.bfloat16):
        for first in range(0, len(tokens), batch_size):
            texts = [torch.from_numpy(text.astype(np.int64)) for text in tokens[first : first + batch_size]]
            ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=pad)
            mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
            out.append(model(input_ids=ids.to(kind), attention_mask=mask.to(kind)).logits.float().cpu())
    return torch.cat(out).numpy()


def flops(race: Race, training: bool, short_last_layer: bool) -> float:
    """The FLOPs that one epoch over the texts needs; see the head of this file."""
    shape = SHAPES[race.shape]
    layers, hidden, inner = shape["num_hidden_layers"], shape["hidden_size"], shape["intermediate_size"]
    key_values = 2 * hidden * shape["head_dim"] * (2 if race.shape == "tiny" else 8)
    layer = 2 * hidden * shape["num_attention_heads"] * shape["head_dim"] + key_values + 3 * hidden * inner
    lengths = race.lengths.astype(float)
    weights_by_tokens = layers * layer * lengths.sum()
    squares = layers * (lengths**2).sum()
    if short_last_layer:
        weights_by_tokens -= (layer - key_values) * (lengths.sum() - len(lengths))
        squares -= (lengths**2).sum()
    forward = 2 * weights_by_tokens + 2 * hidden * squares
    return (2 if training else 1) * forward


@dataclass(frozen=True)
class Table:
    """Rows of the tables of training and prediction, and sentences about them."""

    training: list[str]
    predicting: list[str]
    about: list[str]


def compare(race: Race, rounds: int, rate: float, rivals: bool, table: Table) -> None:
    """Take turns, and add to the table.

    Parameters
    ----------
    race : Race
    rounds : int
    rate : float
        FLOP/s of matrix products.
    rivals : bool
        Whether to measure `Trainer` and the plain loop.
    table : Table
    """
    ours: list[dict[str, float]] = []
    plain: list[dict[str, float]] = []
    for number in range(rounds):
        free_memory()
        found, weights, logits = measure_ours(race)
        ours.append(found)
        print(race.shape, "llmcls", number, found, flush=True)
        if rivals:
            free_memory()
            plain.append(measure_plain(race, weights, logits))
            print(race.shape, "plain", number, plain[-1], flush=True)
    free_memory()
    name = f"{race.shape}, {'4-bit' if race.recipe.model.use_4bit else 'bf16'}"

    def row(who: str, times: list[float], training: bool, *more: str) -> str:
        speed, seconds = [len(race.lengths) / t for t in times], statistics.median(times)
        share = flops(race, training, short_last_layer=who == "llmcls") / seconds / rate
        mine = [r["training" if training else "predicting"] for r in ours]
        ratio = "" if who == "llmcls" else f"{median_ratio(times, mine):.2f}"
        cells = [name, who, ", ".join(f"{s:.1f}" for s in speed), f"{race.lengths.sum() / seconds:,.0f}"]
        return f"| {' | '.join([*cells, f'{share:.0%}', *more, ratio])} |"

    peak = f"{max(r['peak'] for r in ours):.1f} ({ours[0]['traced']:.1f})"
    table.training.append(row("llmcls", [r["training"] for r in ours], True, peak))
    table.predicting.append(row("llmcls", [r["predicting"] for r in ours], False))
    about = (
        f"{name}: {'packed' if ours[0]['packs'] else 'padded'}, {ours[0]['passes']:.2f} passes a step, the largest of "
        f"{ours[0]['tokens']:,.0f} tokens."
    )
    if rivals:
        peak = f"{max(r['peak'] for r in plain):.1f}"
        table.training.append(row("Trainer 4 x 8", [r["training"] for r in plain], True, peak))
        for batch in (4, 32):
            times = [r[f"predicting {batch}"] for r in plain]
            table.predicting.append(row(f"plain loop, batch {batch}", times, False))
        about += (
            f" With the adapter that llmcls trained, the logits of the plain loop differ from its own by at most "
            f"{max(r['off'] for r in plain):.1e} of the largest, and {max(r['changed'] for r in plain):.2%} of the "
            "decisions are others."
        )
    table.about.append(about)


def main() -> None:
    """Measure, print the tables, and write them if a GPU was measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=["1B", "8B"], default=["1B", "8B"])
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of a timed epoch")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--micro-batch-tokens", type=int, default=16384)
    a = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    rates, table = [measure_matmul()], Table([], [], [])
    for shape in a.shapes if on_gpu else ["tiny"]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_model(folder / "base", shape)
            for four_bit in (False, True):
                race = make_race(folder, shape, four_bit, a.steps if on_gpu else 3, a.micro_batch_tokens)
                rates.append(measure_matmul())
                rounds = a.rounds if on_gpu else 1
                compare(race, rounds, statistics.median(rates[-2:]), not four_bit, table)
                print("\n".join(table.training + table.predicting), flush=True)
    probes = ", ".join(f"{rate / 1e12:.2f}" for rate in rates)
    lines = [
        f"{machine()}. Matrix products: {probes} TFLOP/s in bf16, before and between the races. {a.steps} steps of "
        f"{STEP_ROWS} texts, {a.rounds} round(s), taking turns, of llmcls the median of {EPOCHS} epochs. Micro-batches "
        f"of at most {a.micro_batch_tokens:,} tokens. In brackets: the peak that the trace expects.",
        "",
        "| training | | texts/s | tokens/s | share of the probe | peak GiB | speed of llmcls |",
        "|---|---|---|---|---|---|---|",
        *table.training,
        "",
        "| prediction | | texts/s | tokens/s | share of the probe | speed of llmcls |",
        "|---|---|---|---|---|---|",
        *table.predicting,
        "",
        *table.about,
    ]
    print("\n".join(lines))
    if on_gpu:
        write_section("One GPU", lines)
    else:
        print("no GPU is visible: a tiny shape ran on the CPU, and nothing was written")


if __name__ == "__main__":
    main()
