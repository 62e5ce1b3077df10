from __future__ import annotations

from pathlib import Path
from typing import Any

from llmcls.push import main
from tests.conftest import Experiment
from tests.helpers import refusal

TOKEN = "hf_0123456789abcdef"


def test_a_dry_run_writes_the_files_and_calls_nobody(trained_once: Experiment, tmp_path: Path, monkeypatch, capsys):
    def called(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub was called")

    monkeypatch.setattr("llmcls.serving.push.HfApi", called)
    arguments = ["--run", str(trained_once.runs[0]), "--repo", "user/name", "--base-model", "org/base"]
    main([*arguments, "--dry-run", str(tmp_path / "out")])
    files = list((tmp_path / "out").iterdir())
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: {len(files)} files for user/name, nothing uploaded\n"
    assert not (tmp_path / "out" / "adapter_model.safetensors").samefile(
        trained_once.runs[0] / "model" / "adapter_model.safetensors"
    )
    assert "exists; name a folder" in refusal(capsys, "push", *arguments, "--dry-run", tmp_path / "out")


def test_a_push_uploads_the_same_files_and_leaves_none_behind(trained, monkeypatch, capsys) -> None:
    uploaded: dict[str, bytes] = {}

    class Hub:
        def create_repo(self, repo: str, **_: Any) -> str:
            return f"https://hub/{repo}"

        def upload_folder(self, folder_path: Path, **_: Any) -> None:
            uploaded.update({path.name: path.read_bytes() for path in folder_path.iterdir()})

    monkeypatch.setattr("llmcls.serving.push.HfApi", Hub)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    before = sorted(trained.folder.rglob("*"))
    main(["--run", str(trained.runs[0]), "--repo", "user/name", "--base-model", "org/base"])
    assert capsys.readouterr().out == "https://hub/user/name\n"
    assert {"README.md", "adapter_model.safetensors", "labels.json", "recipe.yaml"} <= set(uploaded)
    assert TOKEN.encode() not in b"".join(uploaded.values())
    assert sorted(trained.folder.rglob("*")) == before


def test_a_token_in_an_error_is_not_shown(trained_once: Experiment, monkeypatch, capsys) -> None:
    class Hub:
        def create_repo(self, *_: Any, **__: Any) -> str:
            raise OSError(f"bad request with {TOKEN}")

    monkeypatch.setattr("llmcls.serving.push.HfApi", Hub)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    arguments = ["--run", trained_once.runs[0], "--repo", "user/name", "--base-model", "org/base"]
    sentence = refusal(capsys, "push", *arguments)
    assert "the hub did not take user/name: bad request with ***" in sentence
