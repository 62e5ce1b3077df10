from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from llmcls.recipe.load import load_recipe
from llmcls.training.machine_preview import machine_preview


def test_a_local_model_needs_no_hub_and_space_is_told(write_recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(write_recipe())
    lines, problems = machine_preview(recipe)
    assert problems == []
    assert f"hub: not needed, the model is the folder {recipe.model.model_name}" in lines
    assert any(line.startswith("device: ") for line in lines)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(2**40, 2**40, 2**30))
    lines, problems = machine_preview(recipe)
    assert f"disk: 1 GiB free for {recipe.exp.output_root}" in lines
    assert problems == ["little disk is left (1.0 GiB)"]


def refuse(kind: type[Exception] | None):
    """A hub that answers a question about a file so."""

    def answer(url: str, token: object, timeout: float) -> None:
        if kind is not None:
            response = httpx.Response(403, request=httpx.Request("HEAD", url))
            raise kind("no", response=response) if kind is not OSError else OSError("no route")

    return answer


@pytest.mark.parametrize(
    "kind, sentence",
    [
        (
            GatedRepoError,
            "some/model is gated: accept its terms at https://huggingface.co/some/model, then run `hf auth",
        ),
        (RepositoryNotFoundError, "the hub does not show some/model without a token; check the name"),
        (OSError, "the hub cannot be reached, and the weights of some/model are not in the cache"),
        (None, "hub: the weights of some/model will be downloaded without a token"),
    ],
)
def test_the_gate_of_the_hub_is_tried_before_training(write_recipe, monkeypatch, kind, sentence: str) -> None:
    recipe = load_recipe(write_recipe(model__model_name="some/model"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse(kind))
    lines, problems = machine_preview(recipe)
    assert any(found.startswith(sentence) for found in (lines if kind is None else problems))


def test_a_download_that_is_forbidden_is_said(write_recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    _, problems = machine_preview(load_recipe(write_recipe(model__model_name="some/model")))
    assert problems == ["the weights of some/model are not in the cache, and HF_HUB_OFFLINE forbids a download"]


def test_the_login_of_wandb_is_looked_for_where_wandb_does(write_recipe, tmp_path: Path, monkeypatch) -> None:
    recipe = load_recipe(write_recipe(train__report_to=["wandb"]))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert "wandb: offline (WANDB_MODE)" in machine_preview(recipe)[0]
    monkeypatch.delenv("WANDB_MODE")
    assert any("nobody is logged in; run `wandb login`" in problem for problem in machine_preview(recipe)[1])
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert "wandb: logged in" in machine_preview(recipe)[0]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert any("which is not installed" in problem for problem in machine_preview(recipe)[1])
