"""A list of all experiments below a folder, the best one first, with those that are running or were interrupted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcls.common.files import read_json
from llmcls.common.user_error import UserError
from llmcls.recipe.defaults import selection_metric
from llmcls.recipe.load import load_recipe
from llmcls.recipe.metric_names import in_words, metric_direction
from llmcls.results.lock import in_use
from llmcls.results.report_source import mean_of
from llmcls.results.report_tables import spoken_time
from llmcls.results.run_folder import ExperimentFolder, RunFolder


@dataclass(frozen=True)
class Listed:
    """An experiment of the list.

    Attributes
    ----------
    folder : Path
    task : str
        Data set and metric: only experiments with the same are ranked.
    metric : str
    validation, test : float, optional
        Mean of the metric over the finished seeds.
    interval : list of float, optional
        95 % interval on the last split.
    finished, started : int
        Number of seeds.
    state : str
        "finished", "running" or "interrupted".
    seconds : float
        Training time of the finished seeds.
    """

    folder: Path
    task: str
    metric: str
    validation: float | None
    test: float | None
    interval: list[float] | None
    finished: int
    started: int
    state: str
    seconds: float

    @property
    def rank(self) -> tuple[bool, float]:
        """The sort key: lower is better. Validation decides, so that test stays fresh; test only without it."""
        value = self.test if self.validation is None else self.validation
        return value is None, 0.0 if value is None else -metric_direction(self.metric) * value


def list_runs(root: Path, metric: str | None = None) -> list[Listed]:
    """The experiments below a folder, by task, the best one of each first.

    Parameters
    ----------
    root : Path
    metric : str, optional
        The metric that ranks; default: the metric of choice of each recipe.

    Raises
    ------
    UserError
        If there is no run below the folder.
    """
    folders = sorted({path.parent.parent for path in root.rglob("run_*/recipe.yaml")})
    found = [listed for folder in folders if (listed := _listed(ExperimentFolder(folder), metric)) is not None]
    if not found:
        raise UserError(f"{root} has no runs; name the folder of exp.output_root, such as outputs")
    return sorted(found, key=lambda one: (one.task, *one.rank, str(one.folder)))


def _listed(experiment: ExperimentFolder, metric: str | None) -> Listed | None:
    """An experiment; None if its recipe cannot be read, for one damaged folder must not hide the others."""
    started = [RunFolder(path) for path in sorted(experiment.path.glob("run_*")) if (path / "recipe.yaml").is_file()]
    try:
        recipe = load_recipe(started[0].recipe)
    except UserError:
        return None
    name = metric or selection_metric(recipe)
    done = [run for run in started if run.metrics.is_file()]
    results: list[dict[str, Any]] = [read_json(run.metrics) for run in done]

    def mean(split: str) -> float | None:
        return mean_of([result[split].get(name) for result in results if split in result])

    going_on = "running" if in_use(experiment.lock) else "interrupted"
    return Listed(
        folder=experiment.path,
        task=f"{recipe.data.dataset_name}, {in_words(name)}",
        metric=name,
        validation=mean("validation"),
        test=mean("test"),
        interval=_interval(experiment, results, name),
        finished=len(done),
        started=len(started),
        state="finished" if len(done) == len(started) else going_on,
        seconds=sum(result.get("training", {}).get("seconds", 0.0) for result in results),
    )


def _interval(experiment: ExperimentFolder, results: list[dict[str, Any]], metric: str) -> list[float] | None:
    """The interval of a single run, or that of the mean, which the summary stores."""
    intervals: dict[str, list[float]] = {}
    if len(results) == 1:
        split = "test" if "test" in results[0] else "validation"
        intervals = results[0].get(split, {}).get("intervals", {})
    elif experiment.summary_json.is_file():
        summary = read_json(experiment.summary_json)
        if summary.get("seeds") == [result["seed"] for result in results]:
            intervals = summary.get("intervals") or {}
    return intervals.get(metric)


def list_lines(found: list[Listed], root: Path) -> list[str]:
    """The list as text, one table for each task."""
    lines: list[str] = []
    for task in dict.fromkeys(one.task for one in found):
        rows = [["", "validation", "test", "95 % interval", "seeds", "state", "time", "experiment"]]
        of_task = [one for one in found if one.task == task]
        for number, one in enumerate(of_task, start=1):
            limits = f"{one.interval[0]:.3f} to {one.interval[1]:.3f}" if one.interval else "-"
            seeds = str(one.finished) if one.finished == one.started else f"{one.finished} of {one.started}"
            values = ["-" if v is None else f"{v:.4f}" for v in (one.validation, one.test)]
            name = one.folder.relative_to(root).as_posix()
            rows.append([str(number), *values, limits, seeds, one.state, spoken_time(one.seconds), name])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines += ["", f"{task}:"] if lines else [f"{task}:"]
        lines += ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return lines
