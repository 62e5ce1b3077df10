"""Rows of numbers that a long pass makes, stored beside its output, so that an interrupted pass resumes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from llmcls.common.files import read_json, remove_partials, write_json
from llmcls.common.user_error import UserError
from llmcls.evaluation.outcome import CHUNK_ROWS


class RowFile:
    """A file of rows of numbers, to which a pass appends.

    Parameters
    ----------
    path : Path
    width : int
        Numbers per row.
    """

    def __init__(self, path: Path, width: int) -> None:
        self.path, self.width = path, width

    def __len__(self) -> int:
        """The whole rows that are there."""
        return self.path.stat().st_size // (4 * self.width)

    def keep(self, rows: int) -> None:
        """Drop what is behind the first rows; makes the file if it is missing."""
        self.path.touch()
        os.truncate(self.path, 4 * self.width * rows)

    def append(self, rows: np.ndarray) -> None:
        """Write rows, float32 [rows, width]; an interruption can leave a part of them."""
        with self.path.open("ab") as file:
            file.write(np.ascontiguousarray(rows, dtype=np.float32).tobytes())

    def rows(self) -> np.ndarray:
        """All rows, float32 [rows, width], memory-mapped."""
        if not len(self):
            return np.empty((0, self.width), dtype=np.float32)
        return np.memmap(self.path, dtype=np.float32, mode="r").reshape(-1, self.width)


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
        self.output = output
        self._numbers = RowFile(output.with_name(f"{output.name}.partial.numbers"), width)
        self._state = output.with_name(f"{output.name}.partial.json")

    def resume(self, signature: str, total: int) -> int:
        """Keep the complete chunks that were made from the same model and input.

        Parameters
        ----------
        signature : str
            Digest of model and input.
        total : int
            Rows of the whole pass. The last chunk may be a short one.

        Returns
        -------
        The number of rows kept.
        """
        self.output.parent.mkdir(parents=True, exist_ok=True)
        remove_partials(self.output.parent, f"{self.output.name}.")
        made_from = {"signature": signature, "width": self._numbers.width}
        if not (self._numbers.path.is_file() and self._read_state() == made_from):
            self._numbers.keep(0)
            write_json(self._state, made_from)
            return 0
        found = len(self._numbers)
        rows = total if found >= total else found // CHUNK_ROWS * CHUNK_ROWS
        self._numbers.keep(rows)
        return rows

    def append(self, rows: np.ndarray) -> None:
        """Store one chunk, float32 [rows, width]; if this is interrupted, `resume` drops what is incomplete."""
        self._numbers.append(rows)

    def rows(self) -> np.ndarray:
        """All rows stored, float32 [rows, width], memory-mapped."""
        return self._numbers.rows()

    def remove(self) -> None:
        """Remove the files; the state last, so that no rows are left of which nobody knows what they are."""
        self._numbers.path.unlink(missing_ok=True)
        self._state.unlink(missing_ok=True)

    def _read_state(self) -> object:
        """What the rows were made from; None if there are none, or if that is damaged."""
        try:
            return read_json(self._state) if self._state.is_file() else None
        except UserError:
            return None
