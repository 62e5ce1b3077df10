from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import HfApi, ModelCard

from llmcls.common.user_error import UserError
from llmcls.results.finished_runs import FinishedRun, open_run
from llmcls.results.run_folder import RunFolder
from llmcls.serving.export import ExportOptions, write_export
from llmcls.serving.proof import Proof
from llmcls.serving.push import require_repository, upload, write_exported, write_run
from tests.conftest import Experiment
from tests.helpers import assert_same_predictions, predict, read_json

REPO = "someone/products"


@pytest.fixture
def run(trained_once: Experiment) -> FinishedRun:
    return open_run(RunFolder(trained_once.runs[0]), "org/tiny-llama")


@pytest.mark.parametrize("link", [False, True])
def test_a_pushed_folder_has_no_path_of_this_machine_and_changes_nothing_of_the_run(
    run: FinishedRun, trained_once: Experiment, tmp_path: Path, link: bool
) -> None:
    before = {path: path.read_bytes() for path in run.folder.model.iterdir()}
    write_run(run, REPO, tmp_path / "out", link)
    assert {path: path.read_bytes() for path in run.folder.model.iterdir()} == before
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"adapter_model.safetensors", "thresholds.json", "calibration.json", "metrics.json", "README.md"} <= names
    for path in (tmp_path / "out").iterdir():
        assert str(trained_once.recipe.parent).encode() not in path.read_bytes(), path
    assert read_json(tmp_path / "out" / "adapter_config.json")["base_model_name_or_path"] == "org/tiny-llama"
    recipe = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text(encoding="utf-8"))
    assert (recipe["model"]["model_name"], recipe["data"]["train_csv"]) == ("org/tiny-llama", "train.csv")
    page = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert ModelCard(page).data.base_model == "org/tiny-llama"
    assert f"hf download {REPO} --local-dir products" in page


def test_what_was_pushed_is_used_as_the_run_is(
    run: FinishedRun, tiny_llama: Path, products: Path, trained_once: Experiment, tmp_path: Path
) -> None:
    write_run(run, REPO, tmp_path / "downloaded")
    rest = ["--base-model", tiny_llama, "--input", products / "test.csv", "--output", tmp_path / "p.jsonl"]
    predict("--run", tmp_path / "downloaded", *rest)
    assert_same_predictions(tmp_path / "p.jsonl", trained_once.runs[0] / "predictions_test.jsonl")
    again = open_run(RunFolder(tmp_path / "downloaded"))
    assert again.recipe.model.model_name == "org/tiny-llama"
    write_run(again, "someone/else", tmp_path / "again")
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == sorted(
        p.name for p in (tmp_path / "downloaded").iterdir()
    )


def test_a_base_model_that_others_do_not_have_is_refused(trained_once: Experiment, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which others do not have; name it on the hub with --base-model"):
        write_run(open_run(RunFolder(trained_once.runs[0])), REPO, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_exported_folder_is_pushed_with_the_card_of_its_run(
    trained_once: Experiment, run: FinishedRun, tmp_path: Path
) -> None:
    import json

    exported = tmp_path / "exported"
    exported.mkdir()
    write_export(open_run(RunFolder(trained_once.runs[0])), exported, ExportOptions())
    proof = Proof("validation", 40, 1e-7, 0, 0, 1e-5, "float32")
    (exported / "export.json").write_text(json.dumps({"run": "run_0", **vars(proof)}), encoding="utf-8")
    write_exported(run, exported, REPO, tmp_path / "out")
    page = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert 'model="someone/products"' in page
    assert "40 validation rows&#58; largest difference of a probability 1.0e-07" in page
    assert (tmp_path / "out" / "model.safetensors").is_file()
    other = replace(run, labels=replace(run.labels, names=[f"{name}s" for name in run.labels.names]))
    with pytest.raises(UserError, match="has other labels than"):
        write_exported(other, exported, REPO, tmp_path / "other")
    with pytest.raises(UserError, match=r"is no folder that llmcls.export wrote"):
        write_exported(run, run.folder.model, REPO, tmp_path / "other")


@pytest.mark.parametrize("repo", ["name", "a/b/c", "/name", "user/", "../x", "user/na me", "https://hf.co/user/name"])
def test_what_is_no_repository_is_refused(repo: str) -> None:
    with pytest.raises(UserError, match="it must be USER/NAME"):
        require_repository(repo)


def test_files_go_into_a_repository_that_is_private_unless_told_otherwise(tmp_path: Path, monkeypatch) -> None:
    calls: list[tuple[str, Any]] = []
    monkeypatch.setattr(HfApi, "create_repo", lambda _, repo, **o: calls.append((repo, o)) or f"https://hub/{repo}")
    monkeypatch.setattr(HfApi, "upload_folder", lambda _, **options: calls.append(("files", options)))
    assert upload(tmp_path, REPO, public=False) == f"https://hub/{REPO}"
    assert calls[0] == (REPO, {"private": True, "exist_ok": True})
    assert (calls[1][1]["folder_path"], calls[1][1]["repo_id"]) == (tmp_path, REPO)
    upload(tmp_path, REPO, public=True)
    assert calls[2][1]["private"] is False


class Response:
    status_code = 401


class Forbidden(Exception):
    response = Response()


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (Forbidden("401 Client Error: hf_secret0123456789"), "log in with `hf auth login`"),
        (OSError("Connection refused\nlong trace"), "Connection refused; check the name and the network"),
    ],
)
def test_an_error_of_the_hub_becomes_one_sentence(error, sentence: str, tmp_path: Path, monkeypatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(HfApi, "create_repo", fail)
    with pytest.raises(UserError, match=sentence) as refused:
        upload(tmp_path, REPO, public=False)
    assert "\n" not in str(refused.value)
    assert "hf_secret" not in str(refused.value)
