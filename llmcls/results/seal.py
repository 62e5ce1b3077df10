"""The seal of a finished run: a manifest of its files, so that a command that reads them knows if they were damaged.

What decides a prediction must be as it was written: `require_intact`. Thresholds may be edited by hand, and metrics and
predictions only describe the run, so a change of these is a warning: `warn_about_changes`.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmcls.common.files import json_text, write_json, write_text
from llmcls.common.manifest import MANIFEST, damage, entry_of, read_manifest, write_manifest
from llmcls.common.user_error import UserError
from llmcls.results.run_folder import PREDICTED_SPLITS, RunFolder

log = logging.getLogger(__name__)


def finish_run(run: RunFolder, metrics: dict[str, Any]) -> None:
    """Seal a run, and write metrics.json last: its presence says that the run is finished."""
    text = json_text(metrics)
    shutil.rmtree(run.previous_checkpoint, ignore_errors=True)
    write_manifest(run.path, sealed_files(run), {run.metrics.name: text.encode()})
    write_text(run.metrics, text)


def sealed_files(run: RunFolder) -> list[Path]:
    """The files of a run that its manifest lists, besides metrics.json."""
    single = [run.recipe, run.environment, run.thresholds, run.calibration, run.report, run.metrics_log]
    single += [run.predictions(split) for split in PREDICTED_SPLITS]
    return [path for path in [*single, *run.model.rglob("*")] if path.is_file()]


def reseal(run: RunFolder, files: Iterable[Path]) -> None:
    """Note that files of a sealed run were written again on purpose."""
    entries = read_manifest(run.path)
    if entries is not None:
        entries |= {file.relative_to(run.path).as_posix(): entry_of(file) for file in files if file.is_file()}
        write_json(run.path / MANIFEST, {"files": entries})


def require_intact(run: RunFolder) -> None:
    """Check what decides the predictions of a finished run: its model, calibration and environment.

    Raises
    ------
    UserError
        Naming the first file that is missing or damaged.
    """
    entries = read_manifest(run.path)
    if entries is None:
        log.warning(
            "%s has no %s, so damage of its files cannot be found; an older version wrote it", run.path, MANIFEST
        )
        return
    decisive = [
        name for name in entries if name.startswith(f"{run.model.name}/") and name != _name(run, run.model_card)
    ]
    _refuse(run, [*decisive, run.calibration.name, run.environment.name])


def require_intact_labels(run: RunFolder) -> None:
    """Check the labels of a finished run, as `require_intact` does, and warn about changes of what describes it.

    Raises
    ------
    UserError
        If the labels are damaged.
    """
    if (run.path / MANIFEST).is_file():
        _refuse(run, [_name(run, run.labels), _name(run, run.model_recipe)])
        described = [run.recipe, run.metrics, run.metrics_log, run.thresholds, run.report, run.model_card]
        described += [run.predictions(split) for split in PREDICTED_SPLITS]
        warn_about_changes(run, described)


def warn_about_changes(run: RunFolder, files: Iterable[Path]) -> None:
    """Warn about each of some files that is not as the run, or a command of llmcls, wrote it."""
    for file in files:
        problem = damage(run.path, [_name(run, file)])
        if problem:
            log.warning("%s: %s; it was changed by hand, or damaged", run.path, problem)


def _refuse(run: RunFolder, names: list[str]) -> None:
    problem = damage(run.path, names)
    if problem:
        raise UserError(f"{run.path} is damaged: {problem}; restore the file from a copy, or train the run again")


def _name(run: RunFolder, file: Path) -> str:
    return file.relative_to(run.path).as_posix()
