from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow


def test_experiments_on_the_same_texts_share_their_frozen_states(start, log_lines: list[str]) -> None:
    def baseline(*overrides: str) -> tuple[bytes, str]:
        log_lines.clear()
        store = start("exp.baselines=true", *overrides).warm().setup.folder.experiment.baselines
        read = next(line for line in log_lines if "the frozen model reads" in line)
        return store.decisions_on("test")["probe"].tobytes(), read

    first, all_texts = baseline("exp.run_name=a")
    again, fewer = baseline("exp.run_name=b", "train.learning_rate=1e-5")
    assert first == again
    counts = [int(re.search(r"reads ([\d,]+) texts", line)[1].replace(",", "")) for line in (all_texts, fewer)]
    inputs = start("exp.run_name=c").inputs
    assert counts[0] - counts[1] == len(inputs.validation_split) + len(inputs.test_split)
    # Whatever changes the states has its own.
    for change in (["pooling=mean"], ["data.max_length=20"], ["train.eval_batch_size=1"]):
        assert baseline("exp.run_name=d", *change)[1].split("reads")[1].split()[0] == f"{counts[0]:,}"


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_damaged_frozen_states_are_read_again(start, damage: str, log_lines: list[str]) -> None:
    first = start("exp.baselines=true", "exp.run_name=a").warm().setup.folder.experiment
    whole = first.baselines.decisions_on("test")["probe"]
    (path,) = (first.path.parent / "frozen_states").glob("test-*.safetensors")
    content = path.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 64])
    path.write_bytes({"cut": content[:-100], "flipped": flipped, "empty": b""}[damage])
    second = start("exp.baselines=true", "exp.run_name=b").warm().setup.folder.experiment
    assert np.array_equal(second.baselines.decisions_on("test")["probe"], whole)
    assert path.read_bytes() == content, "made again"
    assert any("is damaged; the texts are read again" in line for line in log_lines)


def test_large_states_are_not_kept(start, monkeypatch) -> None:
    monkeypatch.setattr("llmcls.training.frozen_states.MAX_KEPT_BYTES", 1000)
    begun = start("exp.baselines=true").warm()
    assert set(begun.setup.folder.experiment.baselines.read()) == {"probe"}
    assert not list(Path(begun.setup.recipe.exp.output_root).rglob("frozen_states"))
