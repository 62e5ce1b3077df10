from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llmcls.common.signals import STOP_AFTER
from llmcls.train import main
from llmcls.training.checkpoints import Progress
from llmcls.training.interval import LoggingInterval
from tests.helpers import MEASURED

pytestmark = pytest.mark.slow


def lines_of(run: Path) -> list[dict]:
    """The lines of metrics.jsonl without what is measured."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open(encoding="utf-8")]
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines]


def test_a_stop_between_two_log_lines_changes_none_of_them(write_recipe, monkeypatch, tmp_path: Path) -> None:
    path, root = write_recipe(train__max_steps=6, train__logging_steps=4), tmp_path / "outputs/tiny-llama/products"
    main([str(path), "exp.run_name=whole"])
    for step in (2, 5):
        monkeypatch.setenv(STOP_AFTER, str(step))
        with pytest.raises(SystemExit):
            main([str(path), "exp.run_name=stopped"])
    monkeypatch.delenv(STOP_AFTER)
    main([str(path), "exp.run_name=stopped"])
    assert [(line["step"], line["split"]) for line in lines_of(root / "whole/run_0")][:4] == [
        (1, "engine"), (4, "train"), (6, "train"), (6, "validation")
    ]  # fmt: skip
    assert lines_of(root / "stopped/run_0") == lines_of(root / "whole/run_0")


def test_the_loss_is_summed_in_a_type_that_the_device_has(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch, "zeros", lambda *_, dtype, device: asked.append((device.type, dtype)))
    for kind in ("cpu", "cuda", "mps"):
        LoggingInterval(Progress(seed=1, global_batch_size=8), torch.device(kind))
    # Apple's GPUs have no float64.
    assert asked == [("cpu", torch.float64), ("cuda", torch.float64), ("mps", torch.float32)]
