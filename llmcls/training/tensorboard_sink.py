"""TensorBoard: event files in the folder of the run."""

from __future__ import annotations

import json

import yaml

from llmcls.recipe.defaults import selection_metric
from llmcls.results.dashboard import Dashboard
from llmcls.training.sink import Numbers, Sink, TrackedRun

# Cells of a curve of precision over recall; TensorBoard only keeps sums per threshold.
MOST_CELLS = 2_000_000


def open_tensorboard(tracked: TrackedRun) -> Sink:
    """A writer of event files, which hides events after the resumed step.

    Notes
    -----
    The recipe and the environment are texts. The tab "Custom scalars" draws the metric that selects the best model with
    the baselines as lines.
    """
    from torch.utils.tensorboard import SummaryWriter

    resumed = tracked.resumed_step
    writer = SummaryWriter(str(tracked.folder.tensorboard), purge_step=resumed + 1 if resumed else None)
    environment = tracked.config.get("environment")
    recipe = {name: values for name, values in tracked.config.items() if name != "environment"}
    writer.add_text("config/recipe", _block(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)), resumed)
    if environment:
        writer.add_text("config/environment", _block(json.dumps(environment, indent=2)), resumed)
    metric = selection_metric(tracked.recipe)
    lines = [f"^validation/{metric}$", f"^baselines/.*/validation/{metric}$"]
    writer.add_custom_scalars({"llmcls": {f"validation/{metric}": ["Multiline", lines]}})

    def send(step: int, numbers: Numbers) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    def show(step: int, dashboard: Dashboard) -> None:
        for name, table in dashboard.tables.items():
            writer.add_text(name, table.markdown(), step)
        for name, text in dashboard.texts.items():
            writer.add_text(name, text, step)
        for name, pixels in dashboard.figures.items():
            writer.add_image(name, pixels, step, dataformats="HWC")
        for name, (true, probabilities) in dashboard.precision_recall.items():
            stride = max(1, -(-true.size // MOST_CELLS))
            writer.add_pr_curve(name, true[::stride], probabilities[::stride], step)

    return Sink(send, show, writer.close)


def _block(text: str) -> str:
    """A text as Markdown shows it unchanged."""
    return "\n".join(f"    {line}" for line in text.splitlines())
