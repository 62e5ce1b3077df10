"""The states of validation and test texts under the frozen model, kept for all experiments on the same data.

A learning curve or a sweep measures the linear probe in every experiment, and these texts are the same in all of them.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from llmcls.common.files import replacing
from llmcls.data.splits import Split
from llmcls.engine.agreement import from_main
from llmcls.evaluation.outcome import CHUNK_ROWS
from llmcls.evaluation.probe import Probe
from llmcls.evaluation.scoring import Scorer
from llmcls.evaluation.states import collect_states, state_chunks

log = logging.getLogger(__name__)

# States of more bytes are not kept.
MAX_KEPT_BYTES = 2**28


@dataclass(frozen=True)
class FrozenStates:
    """Where states are kept.

    Attributes
    ----------
    folder : Path
        Of all experiments with the same names of model and data.
    of : str
        A hash of the frozen model.
    """

    folder: Path
    of: str

    def path(self, scorer: Scorer, split: Split) -> Path:
        """The file of a split.

        Its name has a hash of the model, the tokens, and how they are cut into batches, because that decides how sums
        are rounded.
        """
        processes, device = scorer.accelerator.num_processes, scorer.accelerator.device.type
        way = [self.of, processes, device, scorer.max_tokens, scorer.packed, split.window]
        found = hashlib.sha256(json.dumps(way).encode())
        found.update(np.ascontiguousarray(split.lengths).tobytes())
        for i in range(len(split)):
            found.update(np.ascontiguousarray(split.tokens[i], dtype=np.int32).tobytes())
        return self.folder / "frozen_states" / f"{split.name}-{found.hexdigest()[:16]}.safetensors"

    def logits(self, scorer: Scorer, split: Split, linear: nn.Linear, probe: Probe) -> np.ndarray:
        """The logits of a probe for a split, float32 [rows, labels], the same on every rank. Collective.

        Its states are read from their file if there is one, else from a pass over the texts, which writes it.

        Parameters
        ----------
        scorer : Scorer
            Of the frozen model.
        split : Split
        linear : nn.Linear
            The head, whose input the states are.
        probe : Probe
        """
        if not _kept(split, linear):
            return np.concatenate([probe.logits(states) for _, states in state_chunks(scorer, split, linear)])
        path = self.path(scorer, split) if scorer.accelerator.is_main_process else None
        states = None if path is None else _read(path)
        if from_main(scorer.accelerator, states is None):
            states = collect_states(scorer, split, linear)
            if path is not None and states is not None:
                _write(path, states)
        found = np.empty(0, dtype=np.float32)
        if states is not None:
            starts = range(0, len(states), CHUNK_ROWS)
            found = np.concatenate([probe.logits(states[first : first + CHUNK_ROWS]) for first in starts])
        return from_main(scorer.accelerator, found)

    def has(self, scorer: Scorer, split: Split, linear: nn.Linear) -> bool:
        """Whether the states of a split are kept already. For the main process."""
        return _kept(split, linear) and self.path(scorer, split).is_file()


def model_hash(files: dict[str, Path], *of: Any) -> str:
    """A hash of a frozen model: sizes and times of its files, and whatever else it depends on."""
    found = {name: [path.stat().st_size, path.stat().st_mtime_ns] for name, path in files.items()}
    return hashlib.sha256(json.dumps([found, of]).encode()).hexdigest()


def _kept(split: Split, linear: nn.Linear) -> bool:
    return len(split) * linear.in_features * 4 <= MAX_KEPT_BYTES


def _write(path: Path, states: np.ndarray) -> None:
    checksum = {"sum": xxhash.xxh3_128_hexdigest(states.tobytes())}
    with replacing(path) as temporary:
        save_file({"states": torch.from_numpy(states)}, temporary, metadata=checksum)


def _read(path: Path) -> np.ndarray | None:
    """Stored states; None if there are none, or if the file is damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="np") as file:
            states: np.ndarray = file.get_tensor("states")
            expected = (file.metadata() or {}).get("sum")
    except (SafetensorError, OSError):
        states, expected = np.empty(0), None
    if expected != xxhash.xxh3_128_hexdigest(states.tobytes()):
        log.warning("%s is damaged; the texts are read again", path)
        return None
    return states
