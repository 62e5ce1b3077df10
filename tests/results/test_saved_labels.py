from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from llmcls.common.user_error import UserError
from llmcls.data.labels import LabelSpace
from llmcls.results.saved_labels import read_label_space

LABELS = LabelSpace(["sad", "glad"], ["sad", "glad"], "multi_label_classification")


def test_labels_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(asdict(LABELS)))
    assert read_label_space(path) == LABELS


@pytest.mark.parametrize(
    "change",
    [
        {"names": ["sad", "sad"]},
        {"names": []},
        {"names": "sad"},
        {"columns": [1, 2]},
        {"problem_type": "regression"},
        {"colour": "blue"},
    ],
)
def test_a_file_that_describes_no_labels_is_damaged(tmp_path: Path, change: dict) -> None:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(asdict(LABELS) | change))
    with pytest.raises(UserError, match=r"labels\.json is damaged: it does not describe labels; restore it"):
        read_label_space(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"labels\.json is missing; restore it"):
        read_label_space(tmp_path / "labels.json")
