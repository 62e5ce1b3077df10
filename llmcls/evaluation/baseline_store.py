"""What a baseline is, and what an experiment keeps of it: metrics as JSON, and decisions, to compare runs with them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from llmcls.common.files import read_json, replacing, write_json
from llmcls.data.labels import LabelSpace
from llmcls.evaluation.bootstrap import Marks
from llmcls.evaluation.metrics import headline_text

log = logging.getLogger(__name__)

# In the name of an array that is a part of sparse decisions.
_SPARSE = ":"


@dataclass(frozen=True)
class Baseline:
    """A measured baseline.

    Attributes
    ----------
    metrics : dict
        The metrics of each split, by its name, and "seconds".
    decisions : dict of bool [rows, labels]
        Of each split, in the order of its file; with many labels sparse.
    """

    metrics: dict[str, Any]
    decisions: dict[str, Marks]


def log_baseline(name: str, baseline: Baseline, labels: LabelSpace, seconds: float) -> None:
    """Note the time that a baseline took, and log its result on the last split."""
    baseline.metrics["seconds"] = seconds
    for split in ("test", "validation"):
        if split in baseline.metrics:
            shown = headline_text(baseline.metrics[split], labels.problem_type)
            log.info("baseline %-13s %s %s  (%.0f s)", name, split, shown, seconds)
            break


@dataclass(frozen=True)
class BaselineStore:
    """The two files of the baselines of an experiment.

    Baselines are stored in groups that are made together. Each group has a key, which says what it was made from.
    """

    metrics: Path
    decisions: Path

    def read(self) -> dict[str, Any]:
        """Metrics by baseline and split; empty if there are none."""
        found: dict[str, Any] = self._saved()["baselines"]
        return found

    def key(self, group: str) -> str | None:
        """The key of a group; None if it is not stored."""
        found: str | None = self._saved()["groups"].get(group, {}).get("of")
        return found

    def decisions_on(self, split: str) -> dict[str, Marks]:
        """The decisions of each stored baseline on a split, bool [rows, labels], in the order of its file."""
        names = {f"{name}.{split}": name for name in self.read()}
        return {names[entry]: decisions for entry, decisions in self._decisions().items() if entry in names}

    def write(self, group: str, key: str, found: dict[str, Baseline]) -> None:
        """Store a group, in place of what was stored of it. Without baselines, only remove that."""
        saved = self._saved()
        old = saved["groups"].pop(group, {"names": []})["names"]
        decisions = {e: d for e, d in self._decisions().items() if e.partition(".")[0] not in old}
        decisions |= {f"{name}.{split}": d for name, b in found.items() for split, d in b.decisions.items()}
        arrays = {name: part for entry, marks in decisions.items() for name, part in _parts(entry, marks)}
        with replacing(self.decisions) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # its stubs take the names for options
        groups = saved["groups"] | ({group: {"of": key, "names": list(found)}} if found else {})
        kept = {name: metrics for name, metrics in saved["baselines"].items() if name not in old}
        # Written last: a key says that both files are complete.
        write_json(self.metrics, {"groups": groups, "baselines": kept | {name: b.metrics for name, b in found.items()}})

    def _decisions(self) -> dict[str, Marks]:
        """All stored decisions, by "baseline.split"."""
        if not self.decisions.is_file():
            return {}
        with np.load(self.decisions) as saved:
            entries = dict.fromkeys(entry.partition(_SPARSE)[0] for entry in saved.files)
            return {entry: saved[entry] if entry in saved.files else _joined(saved, entry) for entry in entries}

    def _saved(self) -> dict[str, Any]:
        saved: dict[str, Any] = read_json(self.metrics) if self.metrics.is_file() else {}
        # Before there were groups, no decisions were stored; such a file is made again.
        return saved if "groups" in saved else {"groups": {}, "baselines": {}}


def _parts(entry: str, marks: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of an entry, by name."""
    if not sparse.issparse(marks):
        yield entry, marks
        return
    for part, values in (("indices", marks.indices), ("indptr", marks.indptr), ("shape", np.array(marks.shape))):
        yield f"{entry}{_SPARSE}{part}", values


def _joined(saved: Any, entry: str) -> sparse.csr_matrix:
    """Sparse decisions from their arrays."""
    indices, indptr, shape = (saved[f"{entry}{_SPARSE}{part}"] for part in ("indices", "indptr", "shape"))
    return sparse.csr_matrix((np.ones(len(indices), dtype=bool), indices, indptr), shape=tuple(shape.tolist()))
