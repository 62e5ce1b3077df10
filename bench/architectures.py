"""Which architectures are packed: every sequence classifier of transformers, tried with amplified random weights.

``python bench/architectures.py`` writes docs/architectures.md. tests/model/test_architectures.py runs the same sweep.
"""

from __future__ import annotations

import logging
import sys
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from llmcls.model.packed_forward import GAIN, PackingRequest, try_packing  # noqa: E402

# Narrow, but with the depth of a real model: an error in one kind of layer shows.
SIZES = {
    "vocab_size": 100, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 8, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_labels": 4,
}  # fmt: skip
# What some architectures need besides, or cannot take.
CHANGES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "phimoe": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
}
LENGTHS = [5, 2, 9, 1, 14]


@dataclass(frozen=True)
class Outcome:
    """What became of one architecture.

    Attributes
    ----------
    kind : str
        "packed", "padded" or "not tried".
    last_token_only : bool
        Whether the last layer runs at the last tokens only.
    error : float
        Largest difference between packed and single texts, relative to the largest state.
    reason : str
        Why it is not packed, or not tried.
    """

    kind: str
    last_token_only: bool = False
    error: float = 0.0
    reason: str = ""


def names() -> list[str]:
    """Every model type with a sequence classifier."""
    return sorted(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)


@torch.no_grad()
def measure(model_type: str) -> Outcome:
    """Build a narrow model of full depth, try to pack it, and compare packed with single texts in float32."""
    torch.manual_seed(0)
    try:
        config = AutoConfig.for_model(model_type, **SIZES | CHANGES.get(model_type, {}))
        network = AutoModelForSequenceClassification.from_config(config).float().eval()
    except Exception as error:
        return Outcome("not tried", reason=_first_line(error))
    if sum(p.numel() for p in network.parameters()) > 30_000_000:
        return Outcome("not tried", reason="its configuration does not take the usual names of sizes")
    for name, weight in network.named_parameters():
        if weight.dim() == 2 and "embed" not in name:
            weight.mul_(GAIN)
    try:
        packed = try_packing(network, PackingRequest(64, torch.device("cpu"), torch.float32, wanted=True))
    except ValueError as error:
        return Outcome("padded", reason=_first_line(error))
    assert packed is not None
    tokens = torch.arange(sum(LENGTHS)) * 7 % 97 + 3
    together = packed.states(tokens, LENGTHS)
    packed.detach()
    alone = torch.cat(
        [
            network.base_model(input_ids=text[None], use_cache=False).last_hidden_state[0, -1:]
            for text in tokens.split(LENGTHS)
        ]
    )
    difference = float((together - alone).abs().max() / alone.abs().max())
    return Outcome("packed", packed.last_token_only, difference)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:110].replace("|", "/")


def table(outcomes: dict[str, Outcome]) -> list[str]:
    """The outcomes as Markdown."""
    packed = {name: o for name, o in outcomes.items() if o.kind == "packed"}
    lines = [
        "# Architectures",
        "",
        f"Written by `bench/architectures.py` with transformers {version('transformers')}, on a CPU in float32: every",
        "architecture with a sequence classifier, eight narrow layers, weights amplified so that an error in any layer",
        "shows. An architecture is packed only if packed texts have the states of single texts.",
        "",
        f"## Packed ({len(packed)})",
        "",
        "| architecture | last layer at the last tokens only | difference from single texts |",
        "|---|---|---|",
    ]
    lines += [f"| {n} | {'yes' if o.last_token_only else 'no'} | {o.error:.1e} |" for n, o in packed.items()]
    for kind, title in (("padded", "Padded"), ("not tried", "Not tried")):
        rows = {name: o for name, o in outcomes.items() if o.kind == kind}
        lines += ["", f"## {title} ({len(rows)})", "", "| architecture | reason |", "|---|---|"]
        lines += [f"| {name} | {o.reason} |" for name, o in rows.items()]
    return lines


def main() -> None:
    """Measure all and write the page."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    outcomes = {}
    for name in names():
        outcomes[name] = measure(name)
        print(f"{name:28} {outcomes[name]}", flush=True)
    (ROOT / "docs" / "architectures.md").write_text("\n".join(table(outcomes)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
