from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from llmcls.common.user_error import UserError
from llmcls.model.step_trace import MicroBatch, StepCost
from llmcls.recipe.load import load_recipe
from llmcls.train import main
from llmcls.training import token_budget
from llmcls.training.token_budget import find_token_budget, resolve_token_budget, tokens_that_fit
from tests.model.helpers import LABELS


class OneParameter(torch.nn.Module):
    """Stands for a model: notes the shapes it is tried with, and has room for so many tokens."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.packs, self.room, self.tried = True, room, []

    def forward(self, input_ids: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        assert input_ids.shape == (sum(lengths),)
        self.tried.append(sum(lengths))
        if self.tried[-1] > self.room:
            raise torch.OutOfMemoryError("no room")
        return self.weight * torch.ones(len(lengths), 2)


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch):
    """Set tokens/s by tokens, in place of the clock."""

    def use(rates: dict[int, float]) -> None:
        real = token_budget._tokens_per_second

        def rate(model, accelerator, texts, length):
            real(model, accelerator, texts, length)
            return rates[texts * length]

        monkeypatch.setattr(token_budget, "_tokens_per_second", rate)

    return use


def test_it_grows_while_it_fits(write_recipe, speeds) -> None:
    recipe, model = load_recipe(write_recipe(data__max_length=64)), OneParameter(room=600)
    speeds({64 * 2**i: 100.0 * 2**i for i in range(12)})
    assert find_token_budget(recipe, model, Accelerator(cpu=True)) == 512
    assert max(model.tried) == 1024
    assert model.weight.grad is None


def test_it_stops_when_more_does_not_pay(write_recipe, speeds) -> None:
    recipe, model = load_recipe(write_recipe(data__max_length=64)), OneParameter(room=10**9)
    speeds({64: 100.0, 128: 180.0, 256: 182.0, 512: 181.0})
    assert find_token_budget(recipe, model, Accelerator(cpu=True)) == 128
    assert max(model.tried) == 512


def test_it_starts_at_a_guess_and_finds_the_same(write_recipe, speeds) -> None:
    recipe = load_recipe(write_recipe(data__max_length=64))
    speeds({64: 100.0, 128: 180.0, 256: 182.0, 512: 181.0, 1024: 181.0, 2048: 181.0})
    for guess, largest in ((512, 2048), (128, 512), (64, 512)):
        model = OneParameter(room=10**9)
        assert find_token_budget(recipe, model, Accelerator(cpu=True), guess) == 128
        assert max(model.tried) == largest
    # A guess that does not fit after all is halved until it does.
    model = OneParameter(room=300)
    speeds({64 * 2**i: 100.0 * 2**i for i in range(12)})
    assert find_token_budget(recipe, model, Accelerator(cpu=True), 1024) == 256
    assert model.tried[0] == 1024


@pytest.mark.parametrize("gib, texts", [(2.5, 1), (3, 2), (4, 8), (5, 16), (100, 512)])
def test_the_guess_is_the_largest_budget_whose_trace_fits(write_recipe, gib: float, texts: int) -> None:
    recipe = load_recipe(write_recipe(data__max_length=256))
    traced: list[int] = []

    def cost(batch: MicroBatch) -> StepCost:
        traced.append(len(batch.lengths))
        # One GiB for the weights, an eighth for each text, and one for the context.
        activations = int(len(batch.lengths) * 2**27)
        return StepCost(batch, 1, 2**30, 0, 0, 0, 0, 0, activations, 0, ())

    tracer: Any = SimpleNamespace(recipe=recipe, cost=cost)
    assert tokens_that_fit(tracer, gib) == texts * 256
    assert len(traced) == 2


def test_it_is_found_once_and_changes_no_result(write_recipe, tmp_path: Path, monkeypatch) -> None:
    # A CPU would try large micro-batches for half a minute.
    monkeypatch.setattr(token_budget, "MAX_TOKENS", 1024)
    recipe = write_recipe(train__num_train_epochs=1, model__lora_dropout=0.0)
    main([str(recipe), "exp.run_name=given"])
    main([str(recipe), "exp.run_name=auto", "micro_batch_tokens=auto"])
    known = json.loads((tmp_path / "outputs" / "budgets.json").read_text())
    assert len(known) == 1
    assert next(iter(known)).startswith("cpu, tiny-llama, ")
    assert next(iter(known.values())) % 64 == 0
    root = tmp_path / "outputs" / "tiny-llama" / "products"
    found = [json.loads((root / n / "run_0" / "metrics.json").read_text())["test"]["loss"] for n in ("given", "auto")]
    assert found[0] == pytest.approx(found[1], rel=1e-5)

    monkeypatch.setattr(token_budget, "find_token_budget", lambda *_: pytest.fail("it is known"))
    values = load_recipe(recipe, ["micro_batch_tokens=auto"])
    model = torch.nn.Module()
    assert resolve_token_budget(values, Accelerator(cpu=True), model, LABELS) == next(iter(known.values()))
    assert (
        resolve_token_budget(load_recipe(recipe, ["micro_batch_tokens=99"]), Accelerator(cpu=True), model, LABELS) == 99
    )
    assert resolve_token_budget(load_recipe(recipe), Accelerator(cpu=True), model, LABELS) == 8 * 64


@pytest.mark.parametrize(
    "device, sharded, given, expected",
    [
        ("cuda", False, "null", 7777), ("cuda", True, "null", 8 * 64), ("cuda", False, "99", 99),
        ("cuda", True, "auto", 8 * 64), ("cpu", False, "null", 8 * 64), ("cpu", False, "auto", 7777),
    ],
)  # fmt: skip
def test_on_a_gpu_it_is_measured_by_default(write_recipe, monkeypatch, device, sharded, given, expected) -> None:
    monkeypatch.setattr(token_budget, "find_token_budget", lambda *_: 7777)
    monkeypatch.setattr(token_budget, "_key", lambda *_: "this device")
    monkeypatch.setattr(token_budget, "unwrapped", lambda model: model)
    monkeypatch.setattr(token_budget, "shards_state", lambda _: sharded)
    accelerator: Any = SimpleNamespace(device=torch.device(device), num_processes=1, is_main_process=True)
    recipe = load_recipe(write_recipe(), [f"micro_batch_tokens={given}"])
    monkeypatch.setattr(token_budget, "_traced_guess", lambda *_: 64)
    assert resolve_token_budget(recipe, accelerator, torch.nn.Module(), LABELS) == expected


def test_memory_for_the_optimizer_is_kept_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=1000))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: 700)
    full = [token_budget._nearly_full(torch.device("cuda"), state) for state in (0, 100, 101)]
    assert full == [False, False, True]


def test_what_loading_reserved_does_not_count(write_recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    # A stand-in for a GPU of 1,000 bytes. Quantizing once needed 900 of them, and a trial needs one for each token.
    reserved = {"now": 900, "peak": 900}

    def empty_cache() -> None:
        reserved["now"] = 0

    def reset(_: torch.device) -> None:
        reserved["peak"] = reserved["now"]

    def trial(model, accelerator, texts: int, length: int) -> float:
        reserved["now"] = max(reserved["now"], texts * length)
        reserved["peak"] = max(reserved["peak"], reserved["now"])
        return float(texts)

    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: reserved["peak"])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=1000))
    monkeypatch.setattr(token_budget, "_tokens_per_second", trial)
    accelerator: Any = SimpleNamespace(device=torch.device("cuda"))
    recipe = load_recipe(write_recipe(data__max_length=64))
    assert find_token_budget(recipe, OneParameter(room=10**9), accelerator) == 512


def test_another_word_is_refused(write_recipe) -> None:
    with pytest.raises(UserError, match="micro_batch_tokens is 'automatic'"):
        load_recipe(write_recipe(), ["micro_batch_tokens=automatic"])


def test_what_the_main_process_knows_counts_on_every_rank(write_recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    # The file is on a disk that this rank does not see, or sees late.
    monkeypatch.setattr(token_budget, "find_token_budget", lambda *_: pytest.fail("it is known"))
    monkeypatch.setattr(token_budget, "_key", lambda *_: "this device")
    monkeypatch.setattr(token_budget, "from_main", lambda accelerator, own: {"this device": 555})
    recipe = load_recipe(write_recipe(), ["micro_batch_tokens=auto"])
    assert resolve_token_budget(recipe, Accelerator(cpu=True), torch.nn.Module(), LABELS) == 555
