"""Export a run as one self-contained `transformers` folder, and prove that it decides as the run did.

The adapter is merged into the weights that it was trained on. Those of a 4-bit run are the values that its 4-bit
weights stand for, so nothing changes but rounding; merging into the weights before quantization would.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from llmcls.common.files import read_json, replacing_folder, write_json, write_text
from llmcls.common.user_error import UserError
from llmcls.evaluation.calibration import load_calibration
from llmcls.evaluation.thresholds import load_thresholds
from llmcls.model.late_compile import compiling_late
from llmcls.model.pooling import add_attention_query, load_attention_query
from llmcls.model.pretrained import DTYPES, load_pretrained, load_tokenizer
from llmcls.results.card_usage import Home
from llmcls.results.error_analysis import read_texts
from llmcls.results.finished_runs import FinishedRun
from llmcls.results.model_card import model_card
from llmcls.results.saved_labels import require_few
from llmcls.serving.modelling import CLASS, FILE, modelling_source
from llmcls.serving.onnx_graph import require_onnx, write_onnx
from llmcls.serving.proof import SCRIPT, Proof, measure_speed, prove
from llmcls.serving.servers import SERVERS, server_settings

log = logging.getLogger(__name__)

# Validation texts of the race between ONNX Runtime and PyTorch.
RACE_ROWS = 64


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
        The largest difference of a probability; see `prove`.
    onnx : bool
        Write a graph for ONNX Runtime in place of the weights.
    int8 : bool
        Round the matrices of that graph to 8 bits.
    """

    dtype: str = "float32"
    remote_code: bool = False
    full_precision_base: bool = False
    tolerance: float | None = None
    onnx: bool = False
    int8: bool = False

    @property
    def precision(self) -> str:
        """Precision of the exported weights."""
        return "int8" if self.int8 else self.dtype


class NotTheSameError(UserError):
    """An exported folder predicts otherwise than its run; ``proof`` says by how much."""

    def __init__(self, message: str, proof: Proof) -> None:
        super().__init__(message)
        self.proof = proof


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
        If the run does something that no `transformers` folder can do, or has no predictions to compare with.
    NotTheSameError
        If the folder predicts otherwise than the run.
    """
    require_few(run.labels, "llmcls export")
    _refuse_what_cannot_travel(run, options)
    if not run.folder.predicted_splits():
        raise UserError(f"{run.folder.path} has no predictions to compare an export with; train with data.val_csv")
    if target.exists():
        raise UserError(f"{target} exists; remove it, or export to another folder")
    with tempfile.TemporaryDirectory(dir=_existing_parent(target), prefix=".export-") as scratch:
        folder = Path(scratch) / "model"
        with replacing_folder(folder) as temporary:
            write_export(run, temporary, options)
        if options.onnx:
            weights = folder.rename(Path(scratch) / "weights")
            with replacing_folder(folder) as temporary:
                write_onnx(weights, temporary, options.int8)
        proof = prove(run, folder, options.precision, options.tolerance)
        log.info("%s", proof)
        # Not "difference > tolerance", which a NaN would pass.
        if not proof.largest_difference <= proof.tolerance or proof.unexplained:
            raise NotTheSameError(
                f"{target} was not written: it predicts otherwise than the run ({proof}); raise --tolerance if that is "
                f"acceptable{_or_else(options, run.mixed_precision)}",
                proof,
            )
        if options.onnx:
            texts = read_texts(run.recipe, proof.split).texts[:RACE_ROWS]
            proof = replace(proof, speed=measure_speed(folder, weights, texts))
        write_json(folder / "export.json", {"run": run.folder.path.name, **asdict(proof)})
        home = Home(target.name, exported=True, onnx=options.onnx, proof=str(proof))
        write_text(folder / "README.md", model_card(run, home))
        shutil.move(folder, target)
    return proof


def _or_else(options: ExportOptions, mixed_precision: str | None) -> str:
    """What else to do about a difference, or where it may come from.

    Examples
    --------
    >>> _or_else(ExportOptions(dtype="bfloat16"), None), _or_else(ExportOptions(), "bf16")
    (', or use --dtype float32', ' (the run computed in bf16, which rounds)')
    """
    if options.int8:
        return ", or leave out --int8"
    if options.dtype != "float32":
        return ", or use --dtype float32"
    if mixed_precision not in (None, "no"):
        return f" (the run computed in {mixed_precision}, which rounds)"
    return ", or leave out --onnx" if options.onnx else ""


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
    decisions = decisions_of(run)
    write_json(folder / "decisions.json", decisions)
    saved = read_json(folder / "config.json")
    write_json(folder / SERVERS, server_settings(saved, decisions, run.recipe.data.max_length))
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
    with compiling_late():
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


def _refuse_what_cannot_travel(run: FinishedRun, options: ExportOptions) -> None:
    """Refuse a run that prepares its texts, or pools them, as no `transformers` folder does."""
    data, spec = run.recipe.data, run.recipe.model
    if options.int8 and not options.onnx:
        raise UserError("--int8 rounds an ONNX graph; add --onnx, or use --dtype bfloat16 for smaller weights")
    if options.onnx:
        require_onnx()
        if options.dtype != "float32":
            raise UserError(f"--onnx computes in float32, not {options.dtype}; leave out --dtype, or add --int8")
    if data.prompt is not None:
        raise UserError(
            f"{run.folder.path}: data.prompt changes what the model reads, and a tokenizer cannot do that; "
            "use llmcls.predict, or train without a prompt"
        )
    if data.truncation != "head":
        raise UserError(
            f"{run.folder.path}: data.truncation is {data.truncation}, which a tokenizer cannot do; use llmcls.predict"
        )
    # A graph contains the pooling.
    if _needs_code(run) and not options.remote_code and not options.onnx:
        what = f"model.pooling is {spec.pooling}" if spec.pooling != "last" else "model.bidirectional is true"
        raise UserError(
            f"{run.folder.path}: {what}, which transformers does not have; use --remote-code to export it with a small "
            "modelling file, which needs trust_remote_code=True to load, or --onnx"
        )


def _needs_code(run: FinishedRun) -> bool:
    """Whether the model of a run needs its own modelling file."""
    return run.recipe.model.pooling != "last" or run.recipe.model.bidirectional


def _existing_parent(path: Path) -> Path:
    """The parent of a path, made if it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent
