from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmcls.model.gguf_weights import convert_gguf


def test_a_model_that_was_read_from_gguf_is_saved_as_an_ordinary_folder(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # transformers reads GGUF only with a package that is not a dependency. What it returns is like this.
    real, asked = AutoModelForCausalLM.from_pretrained, []

    def read(kind: Any) -> Any:
        def from_pretrained(folder: Path, gguf_file: str, **options: Any) -> Any:
            asked.append((folder, gguf_file))
            found = kind.from_pretrained(tiny_llama, **options)
            if hasattr(found, "config"):
                found.config.quantization_config = {"quant_method": "gguf"}
            return found

        return from_pretrained

    with monkeypatch.context() as patch:
        for module, kind in (("AutoModelForCausalLM", AutoModelForCausalLM), ("AutoTokenizer", AutoTokenizer)):
            reader = type("Reader", (), {"from_pretrained": staticmethod(read(kind))})
            patch.setattr(f"llmcls.model.gguf_weights.{module}", reader)
        convert_gguf(tmp_path / "small.gguf", tmp_path / "model")
    assert asked == [(tmp_path, "small.gguf")] * 2
    saved, expected = real(tmp_path / "model", dtype="auto"), real(tiny_llama)
    assert not hasattr(saved.config, "quantization_config")
    assert all(weight.dtype == torch.bfloat16 for weight in saved.parameters())
    for name, weight in expected.state_dict().items():
        torch.testing.assert_close(saved.state_dict()[name], weight.to(torch.bfloat16), rtol=0, atol=0)
    text = "A sturdy kettle"
    assert AutoTokenizer.from_pretrained(tmp_path / "model")(text) == AutoTokenizer.from_pretrained(tiny_llama)(text)
