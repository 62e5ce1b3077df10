from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmcls.results.finished_runs import open_run
from llmcls.results.run_folder import RunFolder
from llmcls.serving.export import ExportOptions, write_export
from llmcls.serving.servers import server_settings
from tests.conftest import Experiment
from tests.helpers import read_json


def config(**changes: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForSequenceClassification"], "dtype": "bfloat16",
        "problem_type": "single_label_classification",
    } | changes  # fmt: skip


def decisions(temperature: float = 1.0, curves: tuple[dict[str, list[float]], ...] = ()) -> dict[str, Any]:
    return {"calibration": {"temperature": temperature, "curves": list(curves)}}


def test_an_exported_folder_has_what_the_servers_read(trained_once: Experiment, tmp_path: Path) -> None:
    run = open_run(RunFolder(trained_once.runs[0]))
    write_export(run, tmp_path, ExportOptions())
    written, servers = read_json(tmp_path / "config.json"), read_json(tmp_path / "servers.json")
    # vLLM: the suffix makes a classifier of LlamaForCausalLM; the problem type chooses sigmoid; `score` is the head.
    assert written["architectures"] == ["LlamaForSequenceClassification"]
    assert written["problem_type"] == "multi_label_classification"
    assert len(written["id2label"]) == len(run.labels.names)
    assert written["pad_token_id"] is not None
    assert servers["vllm"]["command"] == ["vllm", "serve", ".", "--runner", "pooling", "--dtype", "float32"]
    assert servers["vllm"]["answers"].startswith("probabilities: sigmoid")
    assert servers["vllm"]["request"] == {"truncate_prompt_tokens": 64}
    # SGLang: it answers with logits there, and with a softmax at /v1/classify.
    assert (servers["sglang"]["endpoint"], servers["sglang"]["answers"][:6]) == ("/classify", "logits")
    assert "take the sigmoid of logits / temperature" in servers["sglang"]["to_do"]


def test_calibration_travels_as_far_as_the_server_knows_it() -> None:
    curve = {"x": [0.0, 1.0], "y": [0.0, 0.5]}
    vllm = server_settings(config(), decisions(1.5, (curve,)), 64)["vllm"]
    at = vllm["command"].index("--pooler-config")
    assert json.loads(vllm["command"][at + 1]) == {"logit_sigma": 1.5}
    assert vllm["answers"].startswith("probabilities: softmax")
    assert vllm["to_do"][-2:] == [
        "map each probability by the curves in decisions.json", "compare with the thresholds in decisions.json",
    ]  # fmt: skip


def test_a_name_that_a_server_does_not_know_is_replaced_or_refused() -> None:
    found = server_settings(config(architectures=["Gemma3TextForSequenceClassification"]), decisions(), 64)
    at = found["vllm"]["command"].index("--hf-overrides")
    assert json.loads(found["vllm"]["command"][at + 1]) == {"architectures": ["Gemma3ForSequenceClassification"]}
    assert found["sglang"]["refused"].startswith("SGLang has no Gemma3TextForSequenceClassification")


@pytest.mark.parametrize("server", ["vllm", "sglang"])
def test_other_pooling_is_refused(server: str) -> None:
    found = server_settings(config(auto_map={}), decisions(), 64)[server]
    assert list(found) == ["refused"]
    assert "it pools or attends as the modelling file" in found["refused"]
