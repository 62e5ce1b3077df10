from __future__ import annotations

import json
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import Accelerator

from llmcls import __version__
from llmcls.common.manifest import entry_of
from llmcls.recipe.load import load_recipe
from llmcls.results.run_folder import RunFolder
from llmcls.training import environment as module
from llmcls.training.environment import environment, git_state, note_budget, write_environment


def test_versions_engine_and_devices_are_named(write_recipe, monkeypatch) -> None:
    monkeypatch.setattr(module, "PACKAGES", ("torch", "no-such-package"))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    found = environment(load_recipe(write_recipe()), Accelerator(cpu=True), optimizer, gradient_checkpointing=True)
    assert found["llmcls"] == __version__
    assert found["packages"] == {"torch": version("torch"), "no-such-package": None}
    assert (found["device"], found["processes"], found["gradient_checkpointing"]) == ("cpu", 1, True)
    assert "SGD" in found["optimizer"]
    assert json.loads(json.dumps(found)) == found


def test_data_and_base_model_are_noted_with_their_checksums(trained_once, products: Path, tiny_llama: Path) -> None:
    found = json.loads((trained_once.runs[0] / "environment.json").read_text(encoding="utf-8"))
    assert found["data"] == {s: entry_of(products / f"{s}.csv") for s in ("train", "validation", "test")}
    assert found["base_model"]["model.safetensors"] == entry_of(tiny_llama / "model.safetensors")
    assert {"config.json", "tokenizer.json"} <= found["base_model"].keys()


def test_a_checkout_is_noted_with_its_commit_and_its_changes_without_their_text(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    assert git_state(package) is None
    file = package / "a.txt"
    file.write_text("one")
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    clean = git_state(package)
    assert clean is not None
    assert (len(str(clean["commit"])), clean["changes"]) == (40, None)
    file.write_text("secret")
    changed = git_state(package)
    assert changed is not None
    assert changed["commit"] == clean["commit"]
    assert len(str(changed["changes"])) == 32
    assert "secret" not in str(changed)


def test_a_run_that_resumes_with_other_data_says_so(tmp_path: Path, log_lines) -> None:
    run = RunFolder(tmp_path)
    before = {"data": {"train": {"bytes": 1, "xxh3_128": "a" * 32}}, "base_model": {}, "python": "3.11"}
    write_environment(run, before, 512, step=0)
    assert log_lines == []
    other = before | {"data": {"train": {"bytes": 1, "xxh3_128": "b" * 32}}, "python": "3.12"}
    write_environment(run, other, 512, step=4)
    assert log_lines == [
        f"{tmp_path} was started with other files: data train: 1 bytes (aaaaaaaaaaaa) then, 1 bytes (bbbbbbbbbbbb) "
        "now; its result belongs to neither"
    ]


def test_the_sizes_of_micro_batches_are_noted_with_the_steps_that_had_them(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)

    def noted() -> dict[str, int]:
        found: dict[str, int] = json.loads(run.environment.read_text(encoding="utf-8"))["micro_batch_tokens"]
        return found

    write_environment(run, {}, 512, step=0)
    note_budget(run, 256, step=7)
    assert noted() == {"0": 512, "7": 256}
    # The run resumes from a checkpoint before that, with what is stored now.
    write_environment(run, {}, 256, step=5)
    assert noted() == {"0": 512, "5": 256}
    write_environment(run, {}, 256, step=9)
    assert noted() == {"0": 512, "5": 256}


def test_a_bug_report_with_it_shows_no_paths(trained) -> None:
    text = (trained.runs[0] / "environment.json").read_text(encoding="utf-8")
    assert "/" not in text
    assert str(trained.folder) not in text
