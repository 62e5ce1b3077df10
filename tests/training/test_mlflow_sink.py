from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcls.common.user_error import UserError
from llmcls.recipe.load import load_recipe, recipe_to_dict
from llmcls.results.dashboard import Dashboard, Table
from llmcls.results.run_folder import ExperimentFolder
from llmcls.training.mlflow_sink import open_mlflow, require_mlflow
from llmcls.training.sink import TrackedRun


@pytest.mark.slow
def test_a_resumed_run_is_one_run_with_numbers_tables_and_figures(write_recipe, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    recipe = load_recipe(write_recipe())
    run = ExperimentFolder.of(recipe).run(0)
    run.path.mkdir(parents=True)
    run.report.write_text("<p>report</p>")
    first = open_mlflow(TrackedRun(run, recipe, recipe_to_dict(recipe), 0))
    first.send(2, {"train/loss": 0.5, "validation/per_class/C++/f1": 0.25})
    first.close()
    second = open_mlflow(TrackedRun(run, recipe, recipe_to_dict(recipe), 2))
    second.send(4, {"train/loss": 0.25})
    table, picture = Table(["label", "f1"], [["a", 0.5]]), np.zeros((4, 4, 3), dtype=np.uint8)
    second.show(4, Dashboard({"tables/per_class": table}, {"figures/calibration": picture}, {}, {}, run.report))
    second.close()
    from mlflow import MlflowClient

    client: Any = MlflowClient(tracking_uri=f"sqlite:///{recipe.exp.output_root}/mlflow.db")
    (found,) = client.search_runs([client.get_experiment_by_name("products").experiment_id])
    identity = found.info.run_id
    assert [(m.step, m.value) for m in client.get_metric_history(identity, "train/loss")] == [(2, 0.5), (4, 0.25)]
    assert found.data.metrics["validation/per_class/C__/f1"] == 0.25
    assert found.data.params["train.learning_rate"] == "0.002"
    assert found.data.tags["group"] == "tiny-llama/products"
    assert found.info.status == "FINISHED"
    listed = {item.path for item in client.list_artifacts(identity)}
    assert listed == {"tables", "figures", "report.html"}


@pytest.mark.parametrize("name", ["mlflow", "sqlalchemy"])
def test_a_package_that_is_missing_is_one_sentence(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None if wanted == name else real(wanted))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(
        UserError, match=rf"needs {name}, and it is not installed; run `pip install 'llmcls\[mlflow\]'`"
    ):
        require_mlflow()


def test_with_a_server_no_database_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: real(wanted) if wanted == "mlflow" else None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:1")
    require_mlflow()
