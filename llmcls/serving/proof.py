"""The proof that an exported folder decides as its run did: what it predicts in a process that cannot import llmcls."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmcls.common.user_error import UserError
from llmcls.evaluation.calibration import Calibration, load_calibration
from llmcls.evaluation.thresholds import load_thresholds
from llmcls.results.error_analysis import read_texts
from llmcls.results.finished_runs import FinishedRun
from llmcls.results.predictions import read_predictions
from llmcls.serving.classify import Model
from llmcls.serving.modelling import FILE

# The script that classifies with an exported folder. It is copied there, and is what the proof runs.
SCRIPT = Path(__file__).with_name("classify.py")
# The largest difference of a probability that an export may have, by the precision of run and export.
EXACT, ROUNDED = 1e-5, 5e-2


@dataclass(frozen=True)
class Speed:
    """Texts per second of an ONNX graph and of the same model in PyTorch, measured in turns.

    Attributes
    ----------
    onnx, pytorch : float
        The median over rounds.
    rows, rounds, threads : int
        Texts of a round, rounds, and threads of PyTorch; ONNX Runtime has as many if OMP_NUM_THREADS is set, else one
        for each core.
    """

    onnx: float
    pytorch: float
    rows: int
    rounds: int
    threads: int

    def __str__(self) -> str:
        return (
            f"ONNX Runtime {self.onnx:.1f} texts/s, PyTorch {self.pytorch:.1f} texts/s ({self.onnx / self.pytorch:.2f} "
            "times)"
        )


@dataclass(frozen=True)
class Proof:
    """What came of comparing an exported folder with the stored predictions of its run.

    Attributes
    ----------
    split : str
        The split whose rows were compared.
    rows : int
    largest_difference : float
        Of a probability.
    changed_decisions : int
        Rows that get other labels.
    unexplained : int
        Those of them in which no probability is so close to a decision that rounding can change it.
    tolerance : float
        The largest difference that was allowed.
    dtype : str
        Precision of the exported weights: "float32", "bfloat16", "float16" or "int8".
    speed : Speed, optional
        Of an ONNX graph.
    """

    split: str
    rows: int
    largest_difference: float
    changed_decisions: int
    unexplained: int
    tolerance: float
    dtype: str
    speed: Speed | None = None

    def __str__(self) -> str:
        return (
            f"{self.rows} {self.split} rows: largest difference of a probability {self.largest_difference:.1e} "
            f"(allowed {self.tolerance:.0e}), {self.changed_decisions} changed decisions, "
            f"{self.unexplained} of them unexplained" + (f"; {self.speed}" if self.speed else "")
        )


def read_proof(values: dict[str, Any]) -> Proof:
    """The proof in the values of ``export.json``.

    Raises
    ------
    TypeError
        If they are others.
    """
    speed = values.get("speed")
    kept = {name: value for name, value in values.items() if name not in ("run", "speed")}
    return Proof(**kept, speed=Speed(**speed) if speed else None)


def prove(run: FinishedRun, folder: Path, dtype: str, tolerance: float | None = None) -> Proof:
    """Predict with an exported folder in a process that cannot import llmcls, and compare with the run.

    Parameters
    ----------
    run : FinishedRun
    folder : Path
    dtype : str
        Precision of the exported weights.
    tolerance : float, optional
        The largest difference of a probability. Default: `EXACT` if run and export are float32, else `ROUNDED`.

    Raises
    ------
    UserError
        If the folder cannot be loaded or has other labels.
    """
    split = run.folder.predicted_splits()[0]
    stored = read_predictions(run.folder.predictions(split), run.labels)
    texts = read_texts(run.recipe, split)
    if texts.ids != stored.ids:
        raise UserError(
            f"{run.recipe.data.files()[split]} has other rows than {run.folder.predictions(split)}; "
            "restore the file that the run was trained with"
        )
    with tempfile.TemporaryDirectory() as scratch:
        source, output = Path(scratch, "texts.jsonl"), Path(scratch, "predictions.jsonl")
        with source.open("w", encoding="utf-8") as file:
            rows = zip(texts.ids, texts.texts, strict=True)
            file.writelines(json.dumps({"id": row_id, "text": text}) + "\n" for row_id, text in rows)
        code = ["--trust-remote-code"] if (folder / FILE).exists() else []
        run_without_llmcls(folder / SCRIPT.name, [str(source), str(output), "--device", "cpu", *code])
        lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    if set(lines[0]["probabilities"]) != set(run.labels.names):
        raise UserError("the exported folder has other labels than the run; it cannot be used")
    found = np.array([[line["probabilities"][name] for name in run.labels.names] for line in lines])
    decided = np.array([[name in line["labels"] for name in run.labels.names] for line in lines])
    changed = (decided != stored.predicted).any(axis=1)
    exact = dtype == run.recipe.model.torch_dtype == "float32" and run.mixed_precision in (None, "no")
    given = tolerance if tolerance is not None else EXACT if exact else ROUNDED
    allowed = given * _steepest(load_calibration(run.folder.calibration, len(run.labels.names)))
    explained = _close_to_a_decision(stored.probabilities, run, allowed)
    return Proof(
        split=split,
        rows=len(lines),
        largest_difference=float(np.abs(found - stored.probabilities).max()),
        changed_decisions=int(changed.sum()),
        unexplained=int((changed & ~explained).sum()),
        tolerance=allowed,
        dtype=dtype,
    )


def _steepest(calibration: Calibration) -> float:
    """By how much calibration can enlarge a difference of probabilities, at least 1."""
    slopes = [1.0]
    for curve in calibration.curves:
        dx, dy = np.diff(curve["x"]), np.diff(curve["y"])
        slopes += list(dy[dx > 0] / dx[dx > 0])
    return float(max(slopes))


def _close_to_a_decision(probabilities: np.ndarray, run: FinishedRun, tolerance: float) -> np.ndarray:
    """Whether a difference up to ``tolerance`` can change the labels of a row, bool [rows]."""
    if run.labels.problem_type == "single_label_classification":
        highest = np.sort(probabilities, axis=1)[:, -2:]
        close: np.ndarray = highest[:, 1] - highest[:, 0] <= 2 * tolerance
        return close
    thresholds = np.array(load_thresholds(run.folder.thresholds, run.labels.names).values)
    return (np.abs(probabilities - thresholds) <= tolerance).any(axis=1)


def run_without_llmcls(script: Path, arguments: list[str]) -> None:
    """Run a script in a new process in which llmcls cannot be imported.

    Raises
    ------
    UserError
        With the last line of its errors, if it fails.
    """
    # A name in sys.modules that is None cannot be imported.
    code = (
        "import runpy, sys; sys.modules['llmcls'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-I", "-c", code, str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"the exported folder does not load without llmcls: {last[:200]}")


def measure_speed(onnx: Path, pytorch: Path, texts: list[str], rounds: int = 3) -> Speed:
    """Classify the same texts with two exported folders on the CPU, taking turns.

    Parameters
    ----------
    onnx, pytorch : Path
        The folder with the ONNX graph, and the one with the weights from which it was made.
    texts : list of str
    rounds : int
    """
    models = [Model(folder, "cpu", trust_remote_code=True) for folder in (onnx, pytorch)]
    for model in models:
        model.probabilities(texts[:1])
    seconds: list[list[float]] = [[], []]
    for _ in range(rounds):
        for model, taken in zip(models, seconds, strict=True):
            start = time.perf_counter()
            model.probabilities(texts)
            taken.append(time.perf_counter() - start)
    of_onnx, of_pytorch = (len(texts) / statistics.median(taken) for taken in seconds)
    return Speed(of_onnx, of_pytorch, len(texts), rounds, torch.get_num_threads())
