"""Which architectures are packed: every sequence classifier of transformers, tried with amplified random weights.

``python bench/architectures.py`` writes docs/architectures.md. tests/model/test_architectures.py tries a part of them
again.
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

# Narrow, but as deep as the configuration is by itself: an error in one kind of layer shows.
SIZES = {
    "vocab_size": 100, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_labels": 4,
}  # fmt: skip
EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
}  # fmt: skip
# Attention from a latent state of small rank.
LATENT = {
    "kv_lora_rank": 32, "q_lora_rank": 48, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16,
    "num_key_value_heads": 4,
}  # fmt: skip
LINEAR = {
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
}  # fmt: skip
VISION = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "depth": 2}
COMPOSITE = {"text_config": SIZES, "vision_config": VISION}
# What some architectures need besides; None takes a size away that the configuration does not have.
CHANGES: dict[str, dict[str, Any]] = {
    "axk1": EXPERTS | LATENT,
    "axk2": EXPERTS | LATENT | {"index_head_dim": 32, "index_n_heads": 2},
    "bart": {"encoder_ffn_dim": 128, "decoder_ffn_dim": 128},
    "bigbird_pegasus": {"encoder_ffn_dim": 128, "decoder_ffn_dim": 128},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "ctrl": {"dff": 128},
    "deepseek_v2": EXPERTS | LATENT,
    "deepseek_v3": EXPERTS | LATENT,
    "esmc": {"num_key_value_heads": 4},
    "falcon": {"head_dim": None, "num_key_value_heads": None},
    "funnel": {"num_hidden_layers": None, "block_sizes": [2, 2, 2]},
    "gemma3": COMPOSITE,
    "gpt_oss": EXPERTS,
    "jetmoe": EXPERTS,
    "luke": {"entity_vocab_size": 20},
    "mbart": {"encoder_ffn_dim": 128, "decoder_ffn_dim": 128},
    "minicpm3": LATENT,
    "mistral4": EXPERTS | LATENT | {"head_dim": None},
    "mixtral": EXPERTS,
    "modernvbert": COMPOSITE,
    "mvp": {"encoder_ffn_dim": 128, "decoder_ffn_dim": 128},
    "perceiver": {"d_latents": 64, "d_model": 64, "num_latents": 8, "num_self_attends_per_block": 4},
    "phimoe": EXPERTS,
    "plbart": {"encoder_attention_heads": 4, "decoder_attention_heads": 4},
    "qwen2_moe": EXPERTS,
    "qwen3_5": COMPOSITE | {"text_config": SIZES | LINEAR},
    "qwen3_5_text": LINEAR,
    "qwen3_moe": EXPERTS,
    "qwen3_next": EXPERTS | LINEAR,
    "reformer": {"axial_pos_embds_dim": [32, 32], "attention_head_size": 16},
    "squeezebert": {"embedding_size": 64},
    "t5gemma": {"encoder": SIZES, "decoder": SIZES},
    "t5gemma2": {"encoder": COMPOSITE, "decoder": SIZES},
    "ultravbert": COMPOSITE,
    "xlnet": {"d_model": 64, "n_head": 4, "d_head": 16, "head_dim": None},
}
LARGEST = 30_000_000
LENGTHS = [5, 2, 9, 1, 14]


@dataclass(frozen=True)
class Outcome:
    """What became of one architecture.

    Attributes
    ----------
    kind : str
        "packed", "padded" or "not tried".
    layers : int
        How deep the model was.
    last_token_only : bool
        Whether the last layer runs at the last tokens only.
    error : float
        Largest difference between packed and single texts, relative to the largest state.
    reason : str
        Why it is not packed, or not tried.
    """

    kind: str
    layers: int = 0
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
    sizes = {key: value for key, value in (SIZES | CHANGES.get(model_type, {})).items() if value is not None}
    try:
        config = AutoConfig.for_model(model_type, **sizes)
        with torch.device("meta"):
            parameters = sum(p.numel() for p in AutoModelForSequenceClassification.from_config(config).parameters())
        if parameters > LARGEST:
            return Outcome("not tried", reason=f"the narrow model has {parameters / 1e6:.0f} million parameters")
        network = AutoModelForSequenceClassification.from_config(config).float().eval()
    except Exception as error:
        return Outcome("not tried", reason=_first_line(error))
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    for name, weight in network.named_parameters():
        if weight.dim() == 2 and "embed" not in name:
            weight.mul_(GAIN)
    try:
        packed = try_packing(network, PackingRequest(64, torch.device("cpu"), torch.float32, wanted=True))
    except ValueError as error:
        return Outcome("padded", layers, reason=_first_line(error))
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
    return Outcome("packed", layers, packed.last_token_only, difference)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0].split(" but it was not found")[0][:150].replace("|", "/")


def table(outcomes: dict[str, Outcome]) -> list[str]:
    """The outcomes as Markdown."""
    kinds = {kind: {n: o for n, o in outcomes.items() if o.kind == kind} for kind in ("packed", "padded", "not tried")}
    packed = kinds["packed"]
    lines = [
        "# Architectures",
        "",
        "Which models does [packing](speed.md) work for? `python bench/architectures.py` tries every architecture that",
        f"has a sequence classifier in transformers {version('transformers')}, and writes this page. The models are",
        "narrow and random, have as many layers as the default configuration of the architecture, and weights so large",
        "that an error in any layer shows. An architecture is packed only if packed texts have the states of single",
        "texts; the table shows the difference in float32 on a CPU, relative to the largest state. Texts of the others",
        "are right-padded.",
        "",
        f"## Packed ({len(packed)})",
        "",
        "| architecture | layers | last layer at the last tokens only | difference from single texts |",
        "|---|---|---|---|",
    ]
    for name, o in packed.items():
        lines.append(f"| {name} | {o.layers} | {'yes' if o.last_token_only else 'no'} | {o.error:.1e} |")
    for kind, title in (("padded", "Padded"), ("not tried", "Not tried")):
        lines += ["", f"## {title} ({len(kinds[kind])})", "", "| architecture | reason |", "|---|---|"]
        lines += [f"| {name} | {o.reason} |" for name, o in kinds[kind].items()]
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
