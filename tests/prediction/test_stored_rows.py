from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmcls.prediction import stored_rows
from llmcls.prediction.stored_rows import StoredRows


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoredRows:
    """A pass that stored two whole chunks and was killed while it stored the third."""
    monkeypatch.setattr(stored_rows, "CHUNK_ROWS", 4)
    found = StoredRows(tmp_path / "list.csv", 3)
    assert found.resume("one", 10) == 0
    for chunk in np.arange(24.0).reshape(2, 4, 3):
        found.append(chunk)
    with (tmp_path / "list.csv.partial.numbers").open("ab") as file:
        file.write(b"\0" * 17)
    return found


def test_whole_chunks_are_kept_and_the_rest_is_dropped(started: StoredRows) -> None:
    again = StoredRows(started.output, 3)
    assert again.resume("one", 10) == 8
    again.append(np.full((2, 3), 7.0))
    assert again.rows().tolist() == [*np.arange(24.0).reshape(8, 3).tolist(), [7.0] * 3, [7.0] * 3]
    # The last chunk is a short one, and the pass was killed before its list was written.
    assert StoredRows(started.output, 3).resume("one", 10) == 10
    again.remove()
    assert list(started.output.parent.iterdir()) == []


@pytest.mark.parametrize(("signature", "width"), [("other", 3), ("one", 6)])
def test_rows_of_another_model_or_pool_are_not_taken(started: StoredRows, signature: str, width: int) -> None:
    assert StoredRows(started.output, width).resume(signature, 10) == 0


def test_a_damaged_state_starts_again(started: StoredRows) -> None:
    (started.output.parent / "list.csv.partial.json").write_text("{")
    assert StoredRows(started.output, 3).resume("one", 10) == 0
