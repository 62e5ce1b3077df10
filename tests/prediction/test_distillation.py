from __future__ import annotations

import json

import numpy as np
import pytest

from llmcls.data.labels import LabelSpace
from llmcls.data.soft_labels import read_soft_labels
from llmcls.prediction.distillation import label_cells

SPACES = {
    "columns": LabelSpace(["a", "b", "c"], ["a", "b", "c"], "multi_label_classification"),
    "names": LabelSpace(["a", "b", "c"], ["tags"], "multi_label_classification", separator="|"),
    "class columns": LabelSpace(["a", "b", "c"], ["a", "b", "c"], "single_label_classification"),
    "classes": LabelSpace(["a", "b", "c"], ["kind"], "single_label_classification", ["a", "b", "c"]),
    "yes or no": LabelSpace(["not_a", "a"], ["a"], "binary_classification"),
    "two classes": LabelSpace(["ham", "spam"], ["kind"], "binary_classification", ["ham", "spam"]),
}


@pytest.mark.parametrize("kind", SPACES)
def test_probabilities_are_read_back_as_they_were_said(kind: str) -> None:
    labels = SPACES[kind]
    said = [0.3125, 0.6875] if labels.binary else [0.625, 0.25, 0.125]
    cells = label_cells(dict(zip(labels.names, said, strict=True)), labels)
    found = read_soft_labels({column: [cell] for column, cell in cells.items()}, [0], labels, "t.jsonl")
    assert found[0] == pytest.approx(said)


def test_the_least_probable_of_many_classes_are_left_out() -> None:
    names = [f"class_{i}" for i in range(20_000)]
    labels = LabelSpace(names, ["kind"], "single_label_classification", names)
    alike = np.full(len(names), 1 / len(names))
    assert len(json.loads(label_cells(dict(zip(names, alike, strict=True)), labels)["kind"])) == len(names)
    alike[7] = 0.9
    assert json.loads(label_cells(dict(zip(names, alike, strict=True)), labels)["kind"]) == {"class_7": 1.0}
