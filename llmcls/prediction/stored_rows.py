"""Rows of numbers that a long pass makes, stored beside its output, so that an interrupted pass resumes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from llmcls.common.files import read_json, remove_partials, write_json
from llmcls.common.user_error import UserError
from llmcls.evaluation.scoring import CHUNK_ROWS


class StoredRows:
    """The rows of a pass, in two files beside the output: the numbers, and what they were made from.

    Parameters
    ----------
    output : Path
        What the pass is for.
    width : int
        Numbers per row.
    """

    def __init__(self, output: Path, width: int) -> None:
        self.output, self.width = output, width
        self._numbers = output.with_name(f"{output.name}.partial.numbers")
        self._state = output.with_name(f"{output.name}.partial.json")

    def resume(self, signature: str) -> int:
        """Keep the complete chunks that were made from the same model and input.

        Parameters
        ----------
        signature : str
            Digest of model and input.

        Returns
        -------
        The number of rows kept.
        """
        self.output.parent.mkdir(parents=True, exist_ok=True)
        remove_partials(self.output.parent, f"{self.output.name}.")
        made_from = {"signature": signature, "width": self.width}
        if not (self._numbers.is_file() and self._read_state() == made_from):
            self._numbers.write_bytes(b"")
            write_json(self._state, made_from)
            return 0
        row_bytes = 4 * self.width
        rows = self._numbers.stat().st_size // row_bytes // CHUNK_ROWS * CHUNK_ROWS
        os.truncate(self._numbers, rows * row_bytes)
        return rows

    def append(self, rows: np.ndarray) -> None:
        """Store one chunk, float32 [rows, width]; if this is interrupted, `resume` drops what is incomplete."""
        with self._numbers.open("ab") as file:
            file.write(np.ascontiguousarray(rows, dtype=np.float32).tobytes())

    def rows(self) -> np.ndarray:
        """All rows stored, float32 [rows, width], memory-mapped."""
        return np.memmap(self._numbers, dtype=np.float32, mode="r").reshape(-1, self.width)

    def remove(self) -> None:
        """Remove the files; the state last, so that no rows are left of which nobody knows what they are."""
        self._numbers.unlink(missing_ok=True)
        self._state.unlink(missing_ok=True)

    def _read_state(self) -> object:
        """What the rows were made from; None if there are none, or if that is damaged."""
        try:
            return read_json(self._state) if self._state.is_file() else None
        except UserError:
            return None
