"""wandb: a run of Weights & Biases, the same one after a resume."""

from __future__ import annotations

import importlib.util
import logging
import netrc
import os
import secrets
from typing import Any
from urllib.parse import urlsplit

from llmcls.common.user_error import UserError
from llmcls.recipe.defaults import selection_metric
from llmcls.recipe.metric_names import metric_direction
from llmcls.results.dashboard import Dashboard
from llmcls.training.sink import Numbers, Sink, TrackedRun

log = logging.getLogger(__name__)

HOST = "https://api.wandb.ai"


def require_wandb() -> None:
    """Refuse a recipe that names wandb where it is not installed.

    Raises
    ------
    UserError
    """
    try:
        missing = importlib.util.find_spec("wandb") is None
    except ValueError:
        missing = True
    if missing:
        raise UserError("train.report_to names wandb, which is not installed; run `pip install 'llmcls[wandb]'`")


def login_problem() -> str | None:
    """Why wandb would ask for a login, and what to do; None if it would not."""
    if wandb_mode() != "online" or os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return None
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or HOST).netloc
    if _in_netrc(host):
        return None
    return "nobody is logged in; run `wandb login`, or set WANDB_MODE=offline"


def wandb_mode() -> str:
    """What ``WANDB_MODE`` says: "online" unless it is set."""
    return os.environ.get("WANDB_MODE") or "online"


def open_wandb(tracked: TrackedRun) -> Sink:
    """A run with optimizer steps on the x-axis.

    Notes
    -----
    The id is stored with the run, and a resumed run continues under it. Without a network, the parts of a run are
    folders with the same id, which ``wandb sync`` puts together.
    """
    import wandb

    train = tracked.recipe.train
    known = tracked.stored_id("wandb")
    identity = known or secrets.token_hex(4)
    tracked.store_id("wandb", identity)
    try:
        started: Any = wandb.init(
            project=train.wandb_project or os.environ.get("WANDB_PROJECT") or tracked.recipe.data.dataset_name,
            entity=train.wandb_entity,
            id=identity,
            # Offline, wandb ignores it with a warning.
            resume="allow" if known and wandb_mode() == "online" else None,
            name=tracked.name,
            group=tracked.group,
            job_type=tracked.job_type,
            tags=tracked.tags,
            dir=str(tracked.folder.path),
            config=tracked.config,
            reinit="finish_previous",
            # The changes of the repository that it would upload can contain what belongs in no tracker.
            settings=wandb.Settings(disable_git=True, save_code=False, quiet=True),
        )
    except wandb.errors.Error as error:
        raise RuntimeError(f"it did not start: {error}; run `wandb login`, or set WANDB_MODE=offline") from error
    if wandb_mode() == "online":
        log.info("wandb: %s", started.url)
    metric = selection_metric(tracked.recipe)
    started.define_metric("step")
    started.define_metric("*", step_metric="step")
    best = "max" if metric_direction(metric) > 0 else "min"
    started.define_metric(f"validation/{metric}", step_metric="step", summary=best)

    def send(step: int, numbers: Numbers) -> None:
        started.log(numbers | {"step": step})

    def show(step: int, dashboard: Dashboard) -> None:
        shown: dict[str, Any] = {
            name: wandb.Table(columns=[*table.columns], data=table.rows, allow_mixed_types=True)
            for name, table in dashboard.tables.items()
        }
        shown |= {name: wandb.Image(pixels) for name, pixels in dashboard.figures.items()}
        started.log(shown | {"step": step})
        for name, text in dashboard.texts.items():
            started.summary[name] = text
        if dashboard.report is not None:
            artifact = wandb.Artifact(f"report-{identity}", type="report")
            artifact.add_file(str(dashboard.report))
            started.log_artifact(artifact)

    def close() -> None:
        started.finish()
        if wandb_mode() == "offline":
            parts = tracked.folder.path / "wandb" / "offline-run-*"
            log.info("wandb was offline; `wandb sync %s` uploads this run", parts)

    return Sink(send, show, close)


def _in_netrc(host: str) -> bool:
    """Whether a file of logins names a host, as `wandb login` writes it."""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
