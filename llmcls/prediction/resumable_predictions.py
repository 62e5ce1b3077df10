"""Predictions while they are written, so that an interrupted prediction can resume."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from llmcls.common.files import read_json, sync, write_json
from llmcls.common.manifest import Entry, entry_of
from llmcls.common.user_error import UserError
from llmcls.data.labels import LabelSpace
from llmcls.evaluation.outcome import CHUNK_ROWS
from llmcls.prediction.stored_rows import RowFile
from llmcls.results.prediction_formats import write_lines
from llmcls.results.predictions import Predictions, prediction_lines, read_predictions


def lock_of(output: Path) -> Path:
    """The file of the lock that a prediction holds while it writes an output."""
    return output.with_name(f"{output.name}.lock")


class ResumablePredictions:
    """Predictions that are being written: their lines, their logits, and what they were made from.

    Three files beside the output hold this state; `finish` renames the first to the output and removes the others.

    Parameters
    ----------
    output : Path
    labels : LabelSpace
    kind : str
        The format of the output, see `write_lines`.
    width : int, optional
        Numbers of a row that are kept until the end. Default: its logits.
    """

    def __init__(self, output: Path, labels: LabelSpace, kind: str = "jsonl", width: int | None = None) -> None:
        self.output, self.labels, self.kind = output, labels, kind
        self.width = len(labels.names) if width is None else width
        self._lines = output.with_name(f"{output.name}.partial")
        self._numbers = RowFile(output.with_name(f"{output.name}.partial.logits"), self.width)
        self._state = output.with_name(f"{output.name}.partial.json")

    def resume(self, signature: str) -> int | None:
        """Keep the complete chunks that were written for the same model and input.

        Parameters
        ----------
        signature : str
            Digest of model and input.

        Returns
        -------
        The number of rows kept; None if all are there, and only `finish` was interrupted, which this does again.
        """
        state = self._read_state()
        if state.get("signature") == signature:
            if "complete" in state and self._finish_again(state["complete"]):
                return None
            if self._lines.is_file() and self._numbers.path.is_file():
                return self._keep_whole_chunks()
        self._lines.write_bytes(b"")
        self._numbers.keep(0)
        write_json(self._state, {"signature": signature})
        return 0

    def append(self, predictions: Predictions, numbers: np.ndarray) -> None:
        """Write one chunk; if this is interrupted, `resume` drops what is incomplete.

        Parameters
        ----------
        predictions : Predictions
        numbers : float32 [rows, width]
        """
        with self._lines.open("a", encoding="utf-8", newline="\n") as file:
            file.writelines(prediction_lines(predictions, self.labels))
        self._numbers.append(numbers)

    def numbers(self) -> np.ndarray:
        """The numbers of all rows written, float32 [rows, width]."""
        # Not mapped, because Windows removes no file that is.
        return np.array(self._numbers.rows())

    def written(self) -> Predictions:
        """The predictions of all rows written."""
        return read_predictions(self._lines, self.labels)

    def finish(self) -> None:
        """Give the output its name and format, and remove the rest; the state last, so that this can be resumed."""
        sync(self._lines)
        if self.kind == "jsonl":
            write_json(self._state, self._read_state() | {"complete": entry_of(self._lines)})
            os.replace(self._lines, self.output)
        else:
            with self._lines.open(encoding="utf-8") as lines:
                write_lines(lines, self.output, self.labels, self.kind)
            write_json(self._state, self._read_state() | {"complete": entry_of(self.output)})
            self._lines.unlink()
        self._numbers.path.unlink(missing_ok=True)
        self._state.unlink()

    def _read_state(self) -> dict[str, Any]:
        """What the partial predictions were made from; empty if there are none, or if that is damaged."""
        try:
            saved = read_json(self._state) if self._state.is_file() else {}
        except UserError:
            saved = {}
        return saved if isinstance(saved, dict) else {}

    def _finish_again(self, complete: Entry) -> bool:
        """Finish predictions of which all rows were written; False if they are not there any more."""
        if self.kind == "jsonl" and self._lines.is_file() and entry_of(self._lines) == complete:
            self.finish()
            return True
        if not self.output.is_file() or entry_of(self.output) != complete:
            return False
        for rest in (self._lines, self._numbers.path, self._state):
            rest.unlink(missing_ok=True)
        return True

    def _keep_whole_chunks(self) -> int:
        with self._lines.open("rb") as file:
            lines = sum(line.endswith(b"\n") for line in file)
        rows = min(lines, len(self._numbers)) // CHUNK_ROWS * CHUNK_ROWS
        with self._lines.open("r+b") as file:
            for _ in range(rows):
                file.readline()
            file.truncate(file.tell())
        self._numbers.keep(rows)
        return rows
