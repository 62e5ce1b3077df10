"""Whole trainings on a GPU: results, predictions, 4-bit weights, the optimizer and the token budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from llmcls.model.build import build_classifier, load_trained_classifier
from llmcls.model.four_bit import quantized_layers
from llmcls.model.lora_products import base_weight
from llmcls.recipe.load import load_recipe
from llmcls.results.finished_runs import open_run
from llmcls.results.run_folder import RunFolder
from llmcls.training import token_budget
from llmcls.training.optimizer import _why_no_8bit
from tests.conftest import WriteRecipe, small_recipe
from tests.cuda import DEVICE, NEEDS_GPU
from tests.cuda.helpers import off
from tests.helpers import (
    TOPICS,
    assert_same_metrics,
    assert_same_predictions,
    predict,
    read_json,
    read_lines,
    run_module,
    train,
)
from tests.model.helpers import LABELS, json_lines_of

pytestmark = NEEDS_GPU

BF16 = {"model__torch_dtype": "bfloat16", "model__lora_target_modules": ["all-linear"]}
FOUR_BIT = BF16 | {"model__use_4bit": True, "train__optim_8bit_when_4bit": False}
# A number, so that no time goes into measuring it.
BUDGET = {"train__micro_batch_tokens": 512}


# Of the probabilities on the validation rows; about 0.3 if they are the same for every text.
LEARNED = 0.6


@pytest.fixture(scope="module")
def learned(tiny_llama: Path, products: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a full fine-tuning on the GPU: the tiny Llama knows too little to be adapted at once."""
    folder = tmp_path_factory.mktemp("learned")
    values = small_recipe(tiny_llama, products, folder / "outputs")
    values["model"]["lora_r"] = 0
    values["train"] |= {"num_train_epochs": 12, "eval_steps": 1000, "micro_batch_tokens": 512}
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
    return train(recipe) / "run_0"


@pytest.mark.parametrize(
    "changes",
    [{}, BF16, {"model__torch_dtype": "float32"}, FOUR_BIT, {"model__torch_dtype": "bfloat16", "model__lora_r": 0}],
    ids=["as it learned", "LoRA bf16", "LoRA float32", "4-bit", "all weights bf16"],
)
def test_a_training_learns_and_its_predictions_are_the_same_again_and_nearly_so_on_the_cpu(
    write_recipe: WriteRecipe,
    products: Path,
    tmp_path: Path,
    learned: Path,
    log_lines: list[str],
    changes: dict[str, Any],
) -> None:
    if "model__use_4bit" in changes:
        pytest.importorskip("bitsandbytes")
    run = learned
    if changes:
        changes = BUDGET | {"model__model_name": str(learned / "model"), "train__learning_rate": 1e-3} | changes
        run = train(write_recipe(**changes)) / "run_0"
        # Nothing is taken that is slower than it could be, but that float32 has no flash attention.
        assert "kernels: fused, compiled" in log_lines
        slow = [line for line in log_lines if "text by text" in line or "are padded" in line]
        assert len(slow) == (changes["model__torch_dtype"] == "float32"), slow
    environment, metrics = read_json(run / "environment.json"), read_json(run / "metrics.json")
    assert (environment["engine"], environment["device"]) == ("single", torch.cuda.get_device_name())
    wide = changes.get("model__torch_dtype", "float32") == "float32"
    assert environment["mixed_precision"] == ("no" if wide else "bf16")
    assert metrics["validation"]["average_precision_micro"] > LEARNED

    output = tmp_path / "gpu" / "predictions.jsonl"
    predict("--run", run, "--input", products / "test.csv", "--output", output)
    assert_same_predictions(output, run / "predictions_test.jsonl")
    assert_same_metrics(read_json(output.parent / "predictions.metrics.json"), metrics["test"])

    output = tmp_path / "cpu" / "predictions.jsonl"
    options = ["--run", run, "--input", products / "test.csv", "--output", output]
    done = run_module("llmcls.predict", *options, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr[-3000:]
    here, there = read_lines(run / "predictions_test.jsonl"), read_lines(output)
    found, expected = (torch.tensor([[*line["probabilities"].values()] for line in lines]) for lines in (there, here))
    # Texts differ much more than rounding.
    assert float(expected.std(0).mean()) > 0.08
    assert float((found - expected).abs().max()) < (1e-4 if wide else 4e-2)
    other = sum(len({*a["labels"]} ^ {*b["labels"]}) for a, b in zip(here, there, strict=True))
    assert other <= 0.01 * len(here) * len(TOPICS)


def sums_of_weights(classifier: nn.Module) -> dict[str, float]:
    """The sum of the absolute frozen weights of each linear layer."""
    layers = [(name, module) for name, module in classifier.named_modules() if isinstance(module, nn.Linear)]
    return {name: float(base_weight(layer, torch.bfloat16).double().abs().sum()) for name, layer in layers}


SUMS_OF_WEIGHTS = """
import json
from pathlib import Path
import torch
from llmcls.model.build import load_trained_classifier
from llmcls.results.finished_runs import open_run
from llmcls.results.run_folder import RunFolder
from tests.cuda.test_training import sums_of_weights
run = open_run(RunFolder(Path("{folder}")))
classifier = load_trained_classifier(run.recipe, run.labels, run.folder.model, torch.device("cpu"))
print(json.dumps(sums_of_weights(classifier)))
"""


def test_a_4_bit_run_has_the_same_weights_and_nearly_the_same_logits_on_the_cpu(
    write_recipe: WriteRecipe, learned: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    changes = BUDGET | {"model__model_name": str(learned / "model"), "train__learning_rate": 1e-3} | FOUR_BIT
    run = open_run(RunFolder(train(write_recipe(**changes)) / "run_0"))
    here, there = (
        load_trained_classifier(run.recipe, run.labels, run.folder.model, torch.device(kind)).to(kind).eval()
        for kind in ("cuda", "cpu")
    )
    layers, others = dict(here.named_modules()), dict(there.named_modules())
    assert quantized_layers(here) == quantized_layers(there) > 0
    for name, layer in layers.items():
        if isinstance(layer, nn.Linear):
            found, expected = (base_weight(m, torch.bfloat16).cpu() for m in (layer, others[name]))
            # Scales are rounded to 8 bits, and now and then to another neighbour.
            assert off(found, expected) < 1e-2, name
            assert float((found != expected).float().mean()) < 1e-2, name
    # The same in a process that sees no GPU.
    (alone,) = json_lines_of(SUMS_OF_WEIGHTS.format(folder=str(run.folder.path)), CUDA_VISIBLE_DEVICES="")
    assert alone == sums_of_weights(there)
    lengths = [40, 17, 64, 3]
    tokens = torch.arange(sum(lengths)) % 290 + 5
    logits = []
    for model, kind in ((here, "cuda"), (there, "cpu")):
        with torch.no_grad(), torch.autocast(kind, dtype=torch.bfloat16):
            logits.append(model(tokens.to(kind), lengths))
    assert off(*logits) < 4e-2, logits


def test_the_token_budget_is_measured_once_and_stored(
    write_recipe: WriteRecipe, log_lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(**BF16, data__val_csv=None, data__test_csv=None, train__max_steps=2)
    train(recipe, "exp.run_name=first")
    file = Path(load_recipe(recipe).exp.output_root) / "budgets.json"
    ((key, tokens),) = read_json(file).items()
    assert key.startswith(f"{torch.cuda.get_device_name()} ")
    texts = tokens // 64
    assert (texts * 64, texts & (texts - 1)) == (tokens, 0)
    # One text at a time would leave the GPU idle.
    assert 8 <= texts <= token_budget.MAX_TOKENS // 64
    assert not [line for line in log_lines if "cannot be traced" in line]

    def measured_again(*_: Any) -> None:
        raise AssertionError("the budget was measured again")

    monkeypatch.setattr(token_budget, "find_token_budget", measured_again)
    second = train(recipe, "exp.run_name=second", "train.micro_batch_tokens=auto") / "run_0"
    assert read_json(file) == {key: tokens}
    assert read_json(second / "environment.json")["micro_batch_tokens"] == {"0": tokens}


def test_the_8_bit_optimizer_works_on_this_card() -> None:
    pytest.importorskip("bitsandbytes")
    assert _why_no_8bit(DEVICE) is None


def test_four_bit_weights_are_on_the_gpu_and_take_half_a_byte(write_recipe: WriteRecipe) -> None:
    pytest.importorskip("bitsandbytes")
    recipe = load_recipe(write_recipe(**FOUR_BIT))
    model = build_classifier(recipe, LABELS, DEVICE)
    weights = [p for p in model.parameters() if type(p).__name__ == "Params4bit"]
    # Seven linear layers in each of two layers.
    assert quantized_layers(model) == len(weights) == 14
    for weight in weights:
        state = weight.quant_state
        assert {weight.device.type, state.absmax.device.type} == {DEVICE.type}
        # Scales that take little memory are not packed.
        assert state.absmax.dtype == torch.float32
        assert weight.nbytes == state.shape.numel() // 2
