"""MLflow: a run on the server of ``MLFLOW_TRACKING_URI``, or in a SQLite file beside the results."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
import re
import time
from pathlib import Path
from typing import Any

from llmcls.common.user_error import UserError
from llmcls.results.dashboard import Dashboard
from llmcls.training.sink import Numbers, Sink, TrackedRun

# What its database needs besides mlflow-skinny.
PACKAGES = ("mlflow", "sqlalchemy", "alembic")
# Numbers and parameters that MLflow takes at once, and the longest value of a parameter.
AT_ONCE = 100
LONGEST_VALUE = 500


def require_mlflow() -> None:
    """Refuse a recipe that names MLflow where it, or the database that it writes to, is not installed.

    Raises
    ------
    UserError
    """
    for name in PACKAGES if not os.environ.get("MLFLOW_TRACKING_URI") else PACKAGES[:1]:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"train.report_to names mlflow, which needs {name}, and it is not installed; run `pip install "
                "'llmcls[mlflow]'`"
            )


def open_mlflow(tracked: TrackedRun) -> Sink:
    """A run of MLflow, the same one after a resume.

    Notes
    -----
    The experiment is ``MLFLOW_EXPERIMENT_NAME``, else ``data.dataset_name``. Without a server, the store is
    ``mlflow.db`` in ``exp.output_root``, and figures, tables and the report lie in ``mlartifacts`` beside it.
    """
    require_mlflow()

    @functools.cache
    def opened() -> tuple[Any, str]:
        # At its first use, in the thread of the tracker: making the tables of a new file takes seconds.
        return _open_run(tracked)

    def send(step: int, numbers: Numbers) -> None:
        client, identity = opened()
        entities: Any = importlib.import_module("mlflow.entities")
        now = int(time.time() * 1000)
        metrics = [entities.Metric(metric_name(name), value, now, step) for name, value in numbers.items()]
        for start in range(0, len(metrics), AT_ONCE):
            client.log_batch(identity, metrics=metrics[start : start + AT_ONCE])

    def show(step: int, dashboard: Dashboard) -> None:
        client, identity = opened()
        for name, table in dashboard.tables.items():
            columns = {column: [row[i] for row in table.rows] for i, column in enumerate(table.columns)}
            client.log_dict(identity, columns, f"{name}.json")
            client.log_text(identity, table.markdown(), f"{name}.md")
        for name, pixels in dashboard.figures.items():
            client.log_image(identity, pixels, f"{name}.png")
        for name, text in dashboard.texts.items():
            client.set_tag(identity, name, text)
        if dashboard.report is not None:
            client.log_artifact(identity, str(dashboard.report))

    def close() -> None:
        client, identity = opened()
        client.set_terminated(identity)

    return Sink(send, show, close)


def _open_run(tracked: TrackedRun) -> tuple[Any, str]:
    """A client, and the id of the run: the stored one of a resumed run."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    mlflow: Any = importlib.import_module("mlflow")
    root = Path(tracked.recipe.exp.output_root).absolute()
    server = os.environ.get("MLFLOW_TRACKING_URI")
    client = mlflow.MlflowClient(tracking_uri=server or f"sqlite:///{root / 'mlflow.db'}")
    identity = tracked.stored_id("mlflow")
    if identity is None:
        identity = _new_run(client, tracked, None if server else (root / "mlartifacts").as_uri())
        tracked.store_id("mlflow", identity)
    else:
        client.update_run(identity, status="RUNNING")
    return client, identity


def _new_run(client: Any, tracked: TrackedRun, artifacts: str | None) -> str:
    """Begin a run with its parameters and tags; returns its id."""
    entities: Any = importlib.import_module("mlflow.entities")
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or tracked.recipe.data.dataset_name
    experiment = client.get_experiment_by_name(name)
    number = experiment.experiment_id if experiment else client.create_experiment(name, artifact_location=artifacts)
    tags = {"group": tracked.group, "job_type": tracked.job_type, "tags": ", ".join(tracked.tags)}
    started = client.create_run(number, run_name=tracked.name, tags=tags)
    parameters = [entities.Param(metric_name(key), value[:LONGEST_VALUE]) for key, value in tracked.parameters.items()]
    for start in range(0, len(parameters), AT_ONCE):
        client.log_batch(started.info.run_id, params=parameters[start : start + AT_ONCE])
    identity: str = started.info.run_id
    return identity


def metric_name(name: str) -> str:
    """A name with "_" for every character that MLflow refuses.

    Examples
    --------
    >>> metric_name("validation/per_class/C++ & C#/f1")
    'validation/per_class/C__ _ C_/f1'
    """
    parts = [re.sub(r"[^\w.\- ]", "_", part, flags=re.ASCII) for part in name.split("/")]
    # It would take these for steps of a path.
    return "/".join("_" if part in ("", ".", "..") else part for part in parts)
