from __future__ import annotations

import json
from importlib.metadata import version

import torch
from accelerate import Accelerator

from llmcls import __version__
from llmcls.training import environment as module
from llmcls.training.environment import environment


def test_versions_engine_and_devices_are_named(monkeypatch) -> None:
    monkeypatch.setattr(module, "PACKAGES", ("torch", "no-such-package"))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    found = environment(Accelerator(cpu=True), optimizer, gradient_checkpointing=True)
    assert found["llmcls"] == __version__
    assert found["packages"] == {"torch": version("torch"), "no-such-package": None}
    assert (found["device"], found["processes"], found["gradient_checkpointing"]) == ("cpu", 1, True)
    assert "SGD" in found["optimizer"]
    assert json.loads(json.dumps(found)) == found


def test_a_bug_report_with_it_shows_no_paths(trained) -> None:
    text = (trained.runs[0] / "environment.json").read_text(encoding="utf-8")
    assert "/" not in text
    assert str(trained.folder) not in text
