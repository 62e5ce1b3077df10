"""The table of architectures in the documentation: every row is what bench/architectures.py finds."""

from __future__ import annotations

import re
from importlib.metadata import version

import pytest
import torch

from bench.architectures import measure, names
from llmcls.model.packed_forward import PackedForward
from tests.helpers import ROOT

EXACT = 1e-5
# One for each kind of layer, and those that people use most.
DECODERS = ["llama", "qwen3", "gemma3_text", "phi3", "gpt_neox", "glm4", "minicpm3", "jetmoe"]
OTHERS = ["gemma2", "gpt2", "opt", "bloom", "modernbert", "doge", "qwen3_next"]


def rows() -> dict[str, list[str]]:
    """The cells of the table, by architecture: two where texts are padded, four where they are packed."""
    page = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")
    cells = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    return {row[0]: row for row in cells if row[0] != "architecture"}


def test_the_table_has_every_architecture_of_the_installed_version() -> None:
    page = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")
    written_with = re.search(r"transformers ([\d.]*\d)", page)
    assert written_with is not None
    if written_with[1] != version("transformers"):
        pytest.skip(f"the table was written with transformers {written_with[1]}; run bench/architectures.py")
    assert list(rows()) != []
    assert set(rows()) == set(names())


@pytest.mark.slow
@pytest.mark.parametrize("kind", DECODERS)
def test_a_packed_architecture_is_exact_at_full_depth(kind: str) -> None:
    found = measure(kind)
    assert found.kind == "packed", found.reason
    assert found.error <= EXACT
    _, layers, last_token_only, error = rows()[kind]
    assert (layers, last_token_only) == (str(found.layers), "yes" if found.last_token_only else "no")
    assert float(error) <= EXACT


@pytest.mark.parametrize("kind", OTHERS)
def test_an_architecture_that_is_not_packed_says_why(kind: str) -> None:
    found = measure(kind)
    assert (found.kind, rows()[kind]) == ("padded", [kind, found.reason])
    assert found.reason != ""


def test_smollm3_is_exact_at_its_full_depth_with_the_last_layer_at_the_last_tokens_only() -> None:
    found = measure("smollm3")
    assert (found.kind, found.layers, found.last_token_only) == ("packed", 36, True)
    assert found.error <= EXACT


def test_the_sweep_sees_an_error_in_the_last_of_36_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    # The trial of two layers is made blind, so that the sweep alone must find what the last layer does wrong.
    states = PackedForward.states

    def with_rotation_everywhere(
        self: PackedForward, input_ids: torch.Tensor, lengths: list[int], head: torch.nn.Module | None = None
    ) -> torch.Tensor:
        if len(self.network.base_model.layers) == 36:
            self.network.base_model.layers[-1].self_attn.use_rope = True
        found = states(self, input_ids, lengths, head)
        self.network.base_model.layers[-1].self_attn.use_rope = False
        return found

    monkeypatch.setattr(PackedForward, "states", with_rotation_everywhere)
    found = measure("smollm3")
    assert found.kind == "packed"
    assert found.error > 100 * EXACT
