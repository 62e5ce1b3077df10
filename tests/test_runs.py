from __future__ import annotations

import pytest

from llmcls.common.user_error import UserError
from llmcls.runs import main
from tests.conftest import Experiment
from tests.helpers import read_json


def test_a_trained_experiment_is_listed_with_its_numbers(trained_once: Experiment, capsys) -> None:
    main([str(trained_once.recipe.parent / "outputs")])
    title, _, row = capsys.readouterr().out.splitlines()
    assert title == "products, micro-F1:"
    summary = read_json(trained_once.folder / "summary.json")
    assert row.split()[:3] == ["1", *(f"{summary[s]['f1_micro']['mean']:.4f}" for s in ("validation", "test"))]
    low, high = summary["intervals"]["f1_micro"]
    assert f"{low:.3f} to {high:.3f}  2" in row
    assert row.endswith("tiny-llama/products")


def test_an_unknown_metric_is_one_sentence(trained_once: Experiment) -> None:
    with pytest.raises(UserError, match="'f1_makro', which is no metric; did you mean f1_macro"):
        main([str(trained_once.recipe.parent), "--metric", "f1_makro"])
