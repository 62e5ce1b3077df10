"""Predictions while they are written: what an interrupted prediction needs to go on where it stopped."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from llmcls.evaluate import WINDOW
from llmcls.files import read_json, write_json


class PartialOutput:
    """Predictions being written: their lines, their logits, and what they are predictions of.

    Three files beside the output hold what an interrupted prediction needs to go on; `finish` turns the
    first into the output and removes the others.
    """

    def __init__(self, output: Path, labels: int) -> None:
        self.output, self.labels = output, labels
        self._lines = output.with_name(f"{output.name}.partial")
        self._logits = output.with_name(f"{output.name}.partial.logits")
        self._state = output.with_name(f"{output.name}.partial.json")

    def resume(self, signature: str) -> int:
        """Keep the whole windows already written for the same model and input; returns their rows."""
        rows = 0
        if self._state.exists() and read_json(self._state)["signature"] == signature and self._logits.exists():
            with self._lines.open("rb") as file:
                lines = sum(line.endswith(b"\n") for line in file)
            rows = min(lines, self._logits.stat().st_size // (4 * self.labels)) // WINDOW * WINDOW
            with self._lines.open("r+b") as file:
                for _ in range(rows):
                    file.readline()
                file.truncate(file.tell())
            os.truncate(self._logits, rows * 4 * self.labels)
        else:
            self._lines.write_bytes(b"")
            self._logits.write_bytes(b"")
            write_json(self._state, {"signature": signature})
        return rows

    def append(self, lines: Iterable[str], logits: np.ndarray) -> None:
        """Write one window; after a crash inside, `resume` drops what is not whole."""
        with self._lines.open("a", encoding="utf-8", newline="\n") as file:
            file.writelines(lines)
        with self._logits.open("ab") as file:
            file.write(np.ascontiguousarray(logits, dtype=np.float32).tobytes())

    def logits(self) -> np.ndarray:
        """float32 [rows, labels] of all rows written."""
        return np.fromfile(self._logits, dtype=np.float32).reshape(-1, self.labels)

    def finish(self) -> None:
        """Give the output its name."""
        os.replace(self._lines, self.output)
        self._logits.unlink()
        self._state.unlink()
