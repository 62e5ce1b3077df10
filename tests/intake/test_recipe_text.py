from __future__ import annotations

from pathlib import Path

import pytest

from llmcls.intake.columns import LabelForm
from llmcls.intake.proposal import Proposal
from llmcls.intake.recipe_text import recipe_text
from llmcls.recipe.load import load_recipe
from llmcls.recipe.schema import DataSection

ODD = ["no", "1.0", "a: b", "#x", "é,'\"", "- y", "null", "line\nend", "[a]", "*a"]


@pytest.mark.parametrize("gib, learning_rate", [(0.0, 5e-4), (24.0, 2e-4)])
def test_odd_names_come_back_as_they_were(tmp_path: Path, gib: float, learning_rate: float) -> None:
    data = DataSection("set", "C:\\my data\\train.csv", ODD[1:], text_fields=[ODD[0]], validation_split=0.1)
    data.csv_separator, data.encoding, data.max_length = "\t", "cp1252", 96
    form = LabelForm("multi_label_classification", None, ODD[1:], "a column for each\nlabel".replace("\n", " "))
    text = recipe_text(Proposal(data, form, "Qwen/Qwen3-1.7B-Base", 5000, 0.01, False, gib), "r.yaml", "cpu")
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
    found = load_recipe(tmp_path / "r.yaml")
    assert found.data == data
    assert found.train.learning_rate == pytest.approx(learning_rate)
    assert "# 9 labels: 1.0, a: b, #x, é,'\", - y, ..." in text
    assert "1.0% of the texts are longer (estimated from the characters)" in text
