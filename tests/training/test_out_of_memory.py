from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llmcls.common.user_error import UserError
from llmcls.training import loop, out_of_memory, token_budget
from llmcls.training.out_of_memory import out_of_memory_elsewhere
from tests.helpers import read_json, train

pytestmark = pytest.mark.slow

BUDGET = 512


@pytest.fixture
def recipe(write_recipe) -> Path:
    return write_recipe(data__val_csv=None, data__test_csv=None, train__max_steps=5, train__train_metrics_rows=0)


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that lets the second micro-batch of a step fail, once, as a GPU without memory does."""
    monkeypatch.setattr(token_budget, "find_token_budget", lambda *_: BUDGET)
    real = loop.optimizer_step

    def fail_at(when: int, every_time: bool = False) -> None:
        failed = []

        def step(setup: Any, *arguments: Any) -> Any:
            if arguments[-1] != when or (failed and not every_time):
                return real(setup, *arguments)
            loss_of, calls = setup.loss_of, []

            def losses(*found: Any) -> torch.Tensor:
                calls.append(1)
                if len(calls) == 2:
                    failed.append(1)
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
                return loss_of(*found)

            setup.__dict__["loss_of"] = losses
            try:
                return real(setup, *arguments)
            finally:
                setup.__dict__["loss_of"] = loss_of

        monkeypatch.setattr(loop, "optimizer_step", step)

    return fail_at


def weights(recipe: Path, name: str, *overrides: str) -> dict[str, torch.Tensor]:
    run = train(recipe, f"exp.run_name={name}", *overrides) / "run_0"
    progress = read_json(run / "checkpoints/last/progress.json")
    assert (progress["step"], progress["skipped_steps"]) == (5, 0)
    return load_file(run / "model" / "adapter_model.safetensors")


def test_a_step_that_does_not_fit_is_taken_again_in_smaller_parts(recipe: Path, no_memory, log_lines) -> None:
    no_memory(0)
    found = weights(recipe, "stepped-down", "micro_batch_tokens=auto")
    (lower,) = read_json(recipe.parent / "outputs" / "budgets.json").values()
    assert BUDGET // 4 <= lower <= BUDGET // 2
    assert [line for line in log_lines if "is taken again" in line] != []
    no_memory(-1)
    # Dropout is on: the same masks as in a run that had the lower budget from the start, and no gradient left over.
    expected = weights(recipe, "lower", f"micro_batch_tokens={lower}")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_later_steps_and_those_before_are_the_same_to_rounding(recipe: Path, no_memory) -> None:
    no_memory(3)
    found = weights(recipe, "stepped-down", "micro_batch_tokens=auto", "lora_dropout=0.0")
    no_memory(-1)
    noted = read_json(recipe.parent / "outputs/tiny-llama/products/stepped-down/run_0/environment.json")
    assert list(noted["micro_batch_tokens"]) == ["0", "3"]
    expected = weights(recipe, "whole", f"micro_batch_tokens={BUDGET}", "lora_dropout=0.0")
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, rtol=0, atol=2e-5), name


def test_a_fixed_budget_ends_with_what_helps_and_how_much(recipe: Path, no_memory, monkeypatch) -> None:
    no_memory(2)
    with pytest.raises(UserError) as stop:
        train(recipe, f"micro_batch_tokens={BUDGET}")
    sentence = str(stop.value)
    assert re.search(r"no memory for \d+ tokens at once in step 3, which needs about \d+\.\d GiB; set ", sentence)
    for key in (r"micro_batch_tokens=\d+", "gradient_checkpointing=true", r"max_length=\d+", "use_4bit=true"):
        assert re.search(rf"\.{key} \(\d+\.\d\)", sentence), sentence
    assert len(sentence) < 300


def test_what_would_need_more_is_not_offered(recipe: Path, no_memory, monkeypatch) -> None:
    no_memory(2)
    monkeypatch.setattr(out_of_memory, "_gib", lambda _, changed, *__: 2.5 if changed.model.use_4bit else 2.0)
    with pytest.raises(UserError, match=r"which needs about 2\.0 GiB; set train\.micro_batch_tokens=") as stop:
        train(recipe, f"micro_batch_tokens={BUDGET}")
    assert "gradient_checkpointing=true (2.0)" in str(stop.value)
    assert "use_4bit" not in str(stop.value)


def test_among_several_ranks_the_lower_budget_is_stored_for_the_resume(recipe: Path, no_memory, monkeypatch) -> None:
    # The ranks that wait in an exchange of gradients cannot be called back.
    no_memory(1)
    lowered = loop.with_smaller_batches

    def as_one_of_two(setup: Any, *arguments: Any) -> Any:
        monkeypatch.setattr(type(setup.accelerator), "num_processes", 2)
        try:
            return lowered(setup, *arguments)
        finally:
            monkeypatch.undo()

    monkeypatch.setattr(loop, "with_smaller_batches", as_one_of_two)
    with pytest.raises(UserError, match=r"rank 0 has no memory for step 2 .* the same command resumes with them"):
        train(recipe, "micro_batch_tokens=auto")
    (lower,) = json.loads((recipe.parent / "outputs" / "budgets.json").read_text()).values()
    assert lower < BUDGET


def test_memory_that_is_missing_elsewhere_is_a_sentence(write_recipe, monkeypatch) -> None:
    from llmcls.recipe.load import load_recipe

    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
    recipe = write_recipe()
    monkeypatch.chdir(recipe.parent)
    sentence = str(out_of_memory_elsewhere(load_recipe(recipe.name), error))
    assert "(CUDA out of memory. Tried to allocate 2.00 GiB.)" in sentence
    assert sentence.endswith(
        "lower train.eval_batch_size (now 32 texts), set model.use_4bit=true, or use a smaller model"
    )
