"""Export a run as one self-contained `transformers` folder, and prove that it decides as the run did.

The adapter is merged into the weights that it was trained on. Those of a 4-bit run are the values that its 4-bit
weights stand for, so nothing changes but rounding; merging into the weights before quantization would.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmcls.common.files import read_json, replacing_folder, write_json, write_text
from llmcls.common.user_error import UserError
from llmcls.evaluation.calibration import Calibration, load_calibration
from llmcls.evaluation.thresholds import load_thresholds
from llmcls.model.pooling import add_attention_query, load_attention_query
from llmcls.model.pretrained import DTYPES, load_pretrained, load_tokenizer
from llmcls.results.card_usage import Home
from llmcls.results.error_analysis import read_texts
from llmcls.results.finished_runs import FinishedRun
from llmcls.results.model_card import model_card
from llmcls.results.predictions import read_predictions
from llmcls.serving.modelling import CLASS, FILE, modelling_source

log = logging.getLogger(__name__)

# The script that classifies with an exported folder. It is copied there, and is what the proof runs.
SCRIPT = Path(__file__).with_name("classify.py")
# The largest difference of a probability that an export may have, by the precision of run and export.
EXACT, ROUNDED = 1e-5, 5e-2


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
        Precision of the exported weights.
    """

    split: str
    rows: int
    largest_difference: float
    changed_decisions: int
    unexplained: int
    tolerance: float
    dtype: str

    def __str__(self) -> str:
        return (
            f"{self.rows} {self.split} rows: largest difference of a probability {self.largest_difference:.1e} "
            f"(allowed {self.tolerance:.0e}), {self.changed_decisions} changed decisions, "
            f"{self.unexplained} of them unexplained"
        )


@dataclass(frozen=True)
class ExportOptions:
    """How a run is exported.

    Attributes
    ----------
    dtype : str
        Precision of the exported weights: "float32", "bfloat16" or "float16".
    remote_code : bool
        Whether a modelling file may travel with the weights, for poolings that `transformers` does not have.
    full_precision_base : bool
        Merge the adapter of a 4-bit run into the weights before quantization.
    tolerance : float, optional
        The largest difference of a probability. Default: `EXACT` if run and export are float32, else `ROUNDED`.
    """

    dtype: str = "float32"
    remote_code: bool = False
    full_precision_base: bool = False
    tolerance: float | None = None


def export_run(run: FinishedRun, target: Path, options: ExportOptions) -> Proof:
    """Export a run, and compare what the folder predicts, without llmcls, with what the run predicted.

    Parameters
    ----------
    run : FinishedRun
    target : Path
        The folder to write. It appears only if the proof holds.
    options : ExportOptions

    Returns
    -------
    Proof
        Also written to ``export.json`` in the folder.

    Raises
    ------
    UserError
        If the run does something that no `transformers` folder can do, has no predictions to compare with, or the
        folder predicts otherwise than the run.
    """
    _refuse_what_cannot_travel(run, options)
    if not run.folder.predicted_splits():
        raise UserError(f"{run.folder.path} has no predictions to compare an export with; train with data.val_csv")
    if target.exists():
        raise UserError(f"{target} exists; remove it, or export to another folder")
    with tempfile.TemporaryDirectory(dir=_existing_parent(target), prefix=".export-") as scratch:
        folder = Path(scratch) / "model"
        with replacing_folder(folder) as temporary:
            write_export(run, temporary, options)
        proof = prove(run, folder, options)
        log.info("%s", proof)
        # Not "difference > tolerance", which a NaN would pass.
        if not proof.largest_difference <= proof.tolerance or proof.unexplained:
            raise UserError(
                f"{target} was not written: it predicts otherwise than the run ({proof}); raise --tolerance if that is "
                "acceptable, or use --dtype float32"
            )
        write_json(folder / "export.json", {"run": run.folder.path.name, **asdict(proof)})
        write_text(folder / "README.md", model_card(run, Home(target.name, exported=True, proof=str(proof))))
        shutil.move(folder, target)
    return proof


def write_export(run: FinishedRun, folder: Path, options: ExportOptions) -> None:
    """Write model, tokenizer, decisions and the script `classify.py` into a folder."""
    network = merged_network(run, options)
    spec, base = run.recipe.model, type(network).__name__
    config = network.config
    if _needs_code(run):
        config.pooling, config.bidirectional = spec.pooling, spec.bidirectional
        config.auto_map = {"AutoModelForSequenceClassification": f"{FILE.removesuffix('.py')}.{CLASS}"}
    network.to(DTYPES[options.dtype]).save_pretrained(folder)
    if _needs_code(run):
        (folder / FILE).write_text(modelling_source(base, spec.pooling, spec.bidirectional), encoding="utf-8")
        saved = read_json(folder / "config.json")
        write_json(folder / "config.json", saved | {"architectures": [CLASS]})
    tokenizer = load_tokenizer(spec)
    tokenizer.model_max_length = run.recipe.data.max_length
    tokenizer.save_pretrained(folder)
    write_json(folder / "decisions.json", decisions_of(run))
    shutil.copyfile(SCRIPT, folder / SCRIPT.name)


def merged_network(run: FinishedRun, options: ExportOptions) -> Any:
    """The network of a run as a plain `transformers` sequence classifier, in float32, on the CPU."""
    spec, cpu = run.recipe.model, torch.device("cpu")
    if spec.lora_r == 0:
        whole = replace(spec, model_name=str(run.folder.model), revision=None, torch_dtype="float32")
        network, _ = load_pretrained(whole, run.labels, cpu)
        if spec.pooling == "attention":
            add_attention_query(network)
            load_attention_query(network, run.folder.model)
        return network
    from peft import PeftModel

    quantized = spec.use_4bit and not options.full_precision_base
    # The frozen weights as they were in training: read in its precision, then widened without loss.
    network, _ = load_pretrained(replace(spec, use_4bit=quantized), run.labels, cpu)
    if quantized:
        network = network.dequantize()
    network = network.float()
    if spec.pooling == "attention":
        add_attention_query(network)
    adapted: Any = PeftModel.from_pretrained(network, str(run.folder.model))
    return adapted.merge_and_unload(safe_merge=True)


def decisions_of(run: FinishedRun) -> dict[str, Any]:
    """How the probabilities of a run become labels, for `classify.py`."""
    thresholds = load_thresholds(run.folder.thresholds, run.labels.names)
    calibration = load_calibration(run.folder.calibration, len(run.labels.names))
    names = run.labels.names
    implied = {n: [names[a] for a in found] for n, found in zip(names, run.labels.ancestors(), strict=True) if found}
    return {
        "binary": run.labels.problem_type == "binary_classification",
        "thresholds": dict(zip(names, thresholds.values, strict=True)),
        "at_least_one": thresholds.at_least_one,
        "implies": implied,
        "calibration": {"temperature": calibration.temperature, "curves": calibration.curves},
    }


def prove(run: FinishedRun, folder: Path, options: ExportOptions) -> Proof:
    """Predict with an exported folder in a process that cannot import llmcls, and compare with the run.

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
        code = ["--trust-remote-code"] if _needs_code(run) else []
        run_without_llmcls(folder / SCRIPT.name, [str(source), str(output), "--device", "cpu", *code])
        lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    if set(lines[0]["probabilities"]) != set(run.labels.names):
        raise UserError("the exported folder has other labels than the run; it cannot be used")
    found = np.array([[line["probabilities"][name] for name in run.labels.names] for line in lines])
    decided = np.array([[name in line["labels"] for name in run.labels.names] for line in lines])
    changed = (decided != stored.predicted).any(axis=1)
    exact = options.dtype == run.recipe.model.torch_dtype == "float32" and run.mixed_precision in (None, "no")
    given = options.tolerance if options.tolerance is not None else EXACT if exact else ROUNDED
    tolerance = given * _steepest(load_calibration(run.folder.calibration, len(run.labels.names)))
    explained = _close_to_a_decision(stored.probabilities, run, tolerance)
    return Proof(
        split=split,
        rows=len(lines),
        largest_difference=float(np.abs(found - stored.probabilities).max()),
        changed_decisions=int(changed.sum()),
        unexplained=int((changed & ~explained).sum()),
        tolerance=tolerance,
        dtype=options.dtype,
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


def _refuse_what_cannot_travel(run: FinishedRun, options: ExportOptions) -> None:
    """Refuse a run that prepares its texts, or pools them, as no `transformers` folder does."""
    data, spec = run.recipe.data, run.recipe.model
    if data.prompt is not None:
        raise UserError(
            f"{run.folder.path}: data.prompt changes what the model reads, and a tokenizer cannot do that; "
            "use llmcls.predict, or train without a prompt"
        )
    if data.truncation != "head":
        raise UserError(
            f"{run.folder.path}: data.truncation is {data.truncation}, which a tokenizer cannot do; use llmcls.predict"
        )
    if _needs_code(run) and not options.remote_code:
        what = f"model.pooling is {spec.pooling}" if spec.pooling != "last" else "model.bidirectional is true"
        raise UserError(
            f"{run.folder.path}: {what}, which transformers does not have; use --remote-code to export it with a small "
            "modelling file, which needs trust_remote_code=True to load"
        )


def _needs_code(run: FinishedRun) -> bool:
    """Whether the model of a run needs its own modelling file."""
    return run.recipe.model.pooling != "last" or run.recipe.model.bidirectional


def _existing_parent(path: Path) -> Path:
    """The parent of a path, made if it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent
