from __future__ import annotations

from pathlib import Path

import pytest

from llmcls.model import base_files as module
from llmcls.model.base_files import base_files
from llmcls.recipe.schema import ModelSection


def names(spec: ModelSection) -> list[str]:
    return list(base_files(spec))


def test_what_decides_a_score_is_named_and_nothing_else(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json", "README.md", "tf_model.h5"):
        (tmp_path / name).write_text(name)
    assert names(ModelSection(str(tmp_path))) == ["config.json", "model.safetensors", "tokenizer.json"]
    (tmp_path / "model.safetensors").unlink()
    assert names(ModelSection(str(tmp_path))) == ["config.json", "pytorch_model.bin", "tokenizer.json"]


def test_a_model_of_the_hub_is_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--owner--name" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).write_text(name)
    real = module.try_to_load_from_cache
    monkeypatch.setattr(module, "try_to_load_from_cache", lambda *a, **k: real(*a, cache_dir=tmp_path, **k))
    assert names(ModelSection("owner/name")) == ["config.json", "model.safetensors"]
    assert names(ModelSection("owner/other")) == []
    assert names(ModelSection("no//name of the hub")) == []
