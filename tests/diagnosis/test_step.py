from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from llmcls.diagnosis import step
from llmcls.diagnosis.expectation import Expected
from llmcls.model.cards import efficiency_file, read_efficiency
from tests.diagnosis.helpers import find

MEASURED = step.Measured(
    layers=2, depth=16, texts=4, length=512, seconds=2.0, probe=1e12, peak_gib=3.0, expected=Expected(2.0, 1.8, 1e12)
)


def test_the_share_of_the_probe_and_the_speed_of_all_layers_are_shown(
    write_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "_measure", lambda subject: MEASURED)
    found = find("speed", tmp_path, write_recipe())
    assert found.status == "ok"
    assert found.found == (
        "2.0 texts/s of 512 tokens with 2 of 16 layers, about 0.2 with all; 50% of the 1.00 TFLOP/s of a float32 "
        "matrix product"
    )
    monkeypatch.setattr(step, "device_of", lambda subject: torch.device("cuda"))
    monkeypatch.setattr(step, "_measure", lambda subject: replace(MEASURED, seconds=20.0))
    assert find("speed", tmp_path, write_recipe()).status == "warning"


def test_a_step_that_takes_more_memory_than_it_should_is_a_warning(
    write_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "_measure", lambda subject: MEASURED)
    found = find("peak", tmp_path, write_recipe())
    assert found.status == "ok"
    assert found.found == "a step of 4 x 512 tokens with 2 of 16 layers took 3.00 GiB, 1.50 of the estimate"
    monkeypatch.setattr(step, "_measure", lambda subject: replace(MEASURED, peak_gib=4.0))
    assert find("peak", tmp_path, write_recipe()).status == "warning"
    monkeypatch.setattr(step, "_measure", lambda subject: None)
    assert find("peak", tmp_path, write_recipe()).status == "skipped"


def test_the_peak_on_a_cpu_is_what_was_allocated_and_what_was_there() -> None:
    model = nn.Linear(256, 256, bias=False)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    x = torch.randn(1024, 256)

    def run() -> None:
        # Two results of the size of x exist at once.
        model(x).mul(2.0)

    with torch.no_grad():
        found = step._peak(torch.device("cpu"), model, optimizer, run)
    assert found == pytest.approx(256 * 256 * 4 + 2 * 1024 * 256 * 4, rel=0.02)


def test_the_weights_of_a_layer_are_counted_without_the_embeddings() -> None:
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=30, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, vocab_size=10000, pad_token_id=9999,
    )  # fmt: skip
    norms, attention, mlp = 2 * 64, 2 * 64 * 64 + 2 * 64 * 32, 3 * 64 * 128
    assert step.weights_in_layer(config, trust_remote_code=False) == norms + attention + mlp


def test_a_matrix_product_is_timed() -> None:
    assert step.probe(torch.device("cpu"), torch.bfloat16, 64) > 1e6


def test_the_share_of_the_roofline_of_a_card_is_kept_for_the_estimates_of_check(
    write_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = replace(MEASURED, expected=replace(MEASURED.expected, least_seconds=1.0))
    monkeypatch.setattr(step, "_measure", lambda subject: known)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    assert find("speed", tmp_path, write_recipe()).details["efficiency"] == 0.5
    assert read_efficiency(efficiency_file(tmp_path / "outputs"), "a card") == 0.5
