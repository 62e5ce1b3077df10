"""What vLLM and SGLang need to classify with an exported folder: the command, and what their answers mean.

Read from the sources of vLLM 0.33 (``config/model.py``, ``model_executor/models/registry.py`` and ``adapters.py``,
``model_executor/layers/pooler``) and SGLang 0.5.23 (``srt/configs/model_config.py``, ``srt/models``,
``srt/entrypoints``).
"""

from __future__ import annotations

import json
from typing import Any

SERVERS = "servers.json"
# vLLM finds the decoder of XForSequenceClassification under XForCausalLM. These are called otherwise there.
VLLM_NAMES = {"Gemma3TextForSequenceClassification": "Gemma3ForSequenceClassification"}
# The classifiers of SGLang; it has no general one.
SGLANG_NAMES = (
    "BertForSequenceClassification", "Gemma2ForSequenceClassification", "LlamaForSequenceClassification",
    "Qwen2ForSequenceClassification", "Qwen3ForSequenceClassification", "XLMRobertaForSequenceClassification",
)  # fmt: skip


def server_settings(config: dict[str, Any], decisions: dict[str, Any], max_length: int) -> dict[str, dict[str, Any]]:
    """How each server is started on an exported folder, and what it answers.

    Parameters
    ----------
    config : dict
        ``config.json`` of the folder.
    decisions : dict
        ``decisions.json`` of the folder.
    max_length : int
        Tokens of a text in training.

    Returns
    -------
    dict
        For "vllm" and "sglang": "command" in the exported folder, "endpoint", "request" (fields besides the texts),
        "answers" and "to_do", which is left to the client; or only "refused", with the reason.
    """
    if "auto_map" in config:
        reason = "it pools or attends as the modelling file of this folder says; the server runs only its own models"
        return {"vllm": {"refused": reason}, "sglang": {"refused": reason}}
    return {"vllm": _vllm(config, decisions, max_length), "sglang": _sglang(config, decisions)}


def _vllm(config: dict[str, Any], decisions: dict[str, Any], max_length: int) -> dict[str, Any]:
    architecture, calibration = config["architectures"][0], decisions["calibration"]
    # It would round float32 weights to 16 bits by itself.
    command = ["vllm", "serve", ".", "--runner", "pooling", "--dtype", config["dtype"]]
    if architecture in VLLM_NAMES:
        command += ["--hf-overrides", json.dumps({"architectures": [VLLM_NAMES[architecture]]})]
    if calibration["temperature"] != 1:
        # activation(logit / sigma)
        command += ["--pooler-config", json.dumps({"logit_sigma": calibration["temperature"]})]
    multi_label = config["problem_type"] == "multi_label_classification"
    return {
        "command": command,
        "endpoint": "/classify",
        "request": {"truncate_prompt_tokens": max_length},
        "answers": f"probabilities: {'sigmoid' if multi_label else 'softmax'} of logits / temperature",
        "to_do": _to_do(decisions, []),
    }


def _sglang(config: dict[str, Any], decisions: dict[str, Any]) -> dict[str, Any]:
    architecture = config["architectures"][0]
    if architecture not in SGLANG_NAMES:
        return {"refused": f"SGLang has no {architecture}; it has {', '.join(SGLANG_NAMES)}"}
    multi_label = config["problem_type"] == "multi_label_classification"
    activation = f"take the {'sigmoid' if multi_label else 'softmax'} of logits / temperature"
    return {
        "command": ["python", "-m", "sglang.launch_server", "--model-path", ".", "--is-embedding", "--dtype",
                    config["dtype"]],
        # /v1/classify takes the softmax of any model, which is wrong for one with several labels.
        "endpoint": "/classify",
        "request": {},
        "answers": "logits, in the field `embedding`",
        "to_do": ["cut texts to max_length tokens", *_to_do(decisions, [activation])],
    }  # fmt: skip


def _to_do(decisions: dict[str, Any], first: list[str]) -> list[str]:
    """What a client does with an answer, in order, as `classify.py` does."""
    curves = ["map each probability by the curves in decisions.json"] if decisions["calibration"]["curves"] else []
    return ["strip white space at the ends of a text", *first, *curves, "compare with the thresholds in decisions.json"]
