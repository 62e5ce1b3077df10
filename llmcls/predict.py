"""The prediction command: a run folder and a table of texts in, one JSON line a row out, in the input's order.

``python -m llmcls.predict --run outputs/.../run_0 --input texts.csv --output predictions.jsonl`` needs the run
folder and the base model; ``--recipe R.yaml`` instead of ``--run`` takes the recipe's best run. Lines are
written as they are made to ``<output>.partial``; a prediction that was cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator

from llmcls import UserMistake, run_command
from llmcls.base import load_base, load_tokenizer
from llmcls.calibration import calibrated, load_calibration
from llmcls.data import Split, tokenize_split
from llmcls.engine import open_accelerator, sum_over_ranks
from llmcls.evaluate import evaluate_logits, make_scorer, prediction_lines, score_windows, uncertainty
from llmcls.files import read_json, replacing, write_json, write_text
from llmcls.labels import LabelSpace, as_marks
from llmcls.metrics import evaluate_predictions, metric_direction
from llmcls.model import Classifier, finish_classifier, prepare_base
from llmcls.partial import PartialOutput
from llmcls.pooling import load_attention_query
from llmcls.recipe import Recipe, load_recipe
from llmcls.report import experiment_folder
from llmcls.runs import runs_in
from llmcls.tables import read_table
from llmcls.thresholds import Thresholds, apply_thresholds, load_thresholds
from llmcls.tracking import configure_logging

# By name: as a command this module is called "__main__".
log = logging.getLogger("llmcls.predict")


@dataclass
class TrainedRun:
    """A finished run folder, opened."""

    folder: Path
    recipe: Recipe
    labels: LabelSpace
    mixed_precision: str | None = None


def main(argv: list[str] | None = None) -> None:
    """Predict a table with a trained run."""
    parser = argparse.ArgumentParser(prog="llmcls.predict", description="Classify texts with a trained run.")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", nargs="+", help="a run folder, outputs/.../run_0; of several, the mean is predicted")
    which.add_argument("--recipe", help="the recipe that was trained; its best run on validation is taken")
    parser.add_argument("--input", required=True, help="CSV, TSV, JSONL or Parquet with the recipe's text columns")
    parser.add_argument("--output", required=True, help="where the JSON lines go")
    parser.add_argument("--ensemble", action="store_true", help="with --recipe: the mean of all its finished seeds")
    parser.add_argument("--base-model", help="where the base model lies now, if it moved since training")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="with --recipe, as in training")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.run and arguments.overrides:
        raise UserMistake("command line: overrides go with --recipe; a run folder holds its own recipe")
    if arguments.run and arguments.ensemble:
        raise UserMistake("command line: --ensemble goes with --recipe; with --run name all the runs")
    if arguments.run:
        folders = [Path(folder) for folder in arguments.run]
    else:
        recipe = load_recipe(arguments.recipe, arguments.overrides)
        folders = finished_runs(recipe) if arguments.ensemble else [best_run(recipe)]
    runs = [open_run(folder, arguments.base_model) for folder in folders]
    accelerator = open_accelerator(runs[0].recipe, training=False, mixed_precision=runs[0].mixed_precision)
    configure_logging(accelerator.is_main_process)
    try:
        if len(runs) == 1:
            predict(runs[0], arguments.input, Path(arguments.output), accelerator)
        else:
            predict_ensemble(runs, arguments.input, Path(arguments.output), accelerator)
    finally:
        accelerator.end_training()


def finished_runs(recipe: Recipe) -> list[Path]:
    """The run folders of a recipe that are finished, in the order of its seeds."""
    root = experiment_folder(recipe)
    try:
        return runs_in(root)
    except UserMistake:
        raise UserMistake(
            f"{root} has no finished run of {recipe.source}; train it first, or name a folder with --run"
        ) from None


def best_run(recipe: Recipe) -> Path:
    """The finished run of a recipe with the best validation metric (the first, without validation)."""
    name = recipe.train.metric_for_best_model

    def value(path: Path) -> float:
        found = read_json(path / "metrics.json").get("validation", {}).get(name)
        return float("-inf") if found is None else metric_direction(name) * found

    return max(finished_runs(recipe), key=value)


def open_run(folder: Path, base_model: str | None = None) -> TrainedRun:
    """Read what a run folder says of its model.

    Raises
    ------
    UserMistake: no run there, or one that is not finished.
    """
    saved = folder / "model" / "recipe.yaml"
    # The model is written before the last evaluation, thresholds.json and, last of all, metrics.json.
    if not saved.is_file() or not (folder / "metrics.json").is_file():
        why = "was started but not finished" if (folder / "recipe.yaml").is_file() else "is no run folder"
        raise UserMistake(f"{folder} {why} (it has no model/recipe.yaml or no metrics.json); train it to the end first")
    recipe = load_recipe(saved)
    if base_model:
        recipe = replace(recipe, model=replace(recipe.model, model_name=base_model))
    # A profile may have trained a float32 recipe in bf16; the run is then predicted with in bf16.
    environment = folder / "environment.json"
    precision = read_json(environment)["mixed_precision"] if environment.exists() else None
    return TrainedRun(folder, recipe, LabelSpace(**read_json(folder / "model" / "labels.json")), precision)


def load_classifier(run: TrainedRun, device: torch.device) -> Classifier:
    """The trained model of a run, in the precision it was trained in, its adapter merged where that is exact."""
    spec, model_folder = run.recipe.model, run.folder / "model"
    if spec.lora_r == 0:
        model, _ = load_base(replace(spec, model_name=str(model_folder), revision=None), run.labels, device)
        packs = prepare_base(model, run.recipe, device)
        if spec.pooling == "attention":
            load_attention_query(model, model_folder)
    else:
        from peft import PeftModel

        base, _ = load_base(spec, run.labels, device)
        packs = prepare_base(base, run.recipe, device)
        model = PeftModel.from_pretrained(base, model_folder)
    classifier = finish_classifier(model, run.recipe, packs)
    classifier.merge_adapter()
    return classifier


def predict(run: TrainedRun, input_path: str, output: Path, accelerator: Accelerator) -> dict[str, Any] | None:
    """Write one line for every row of ``input_path``; returns metrics when the input has the label columns.

    The metrics go to ``<output stem>.metrics.json`` too.
    """
    split = _tokenized(run, input_path, accelerator)
    model = accelerator.prepare_model(load_classifier(run, accelerator.device), evaluation_mode=True)
    pad_token_id = load_tokenizer(run.recipe.model).pad_token_id
    scorer = make_scorer(accelerator, model, run.labels, pad_token_id, run.recipe)
    thresholds = load_thresholds(run.folder / "thresholds.json", run.labels.names)
    calibration = load_calibration(run.folder / "calibration.json")
    partial = PartialOutput(output, len(run.labels.names))
    # The main process alone reads and writes the output; the others learn from it where to begin.
    done = torch.zeros((), dtype=torch.int64, device=accelerator.device)
    if accelerator.is_main_process:
        output.parent.mkdir(parents=True, exist_ok=True)
        done += partial.resume(_signature(run, input_path))
    done = int(sum_over_ranks(accelerator, done))
    if done:
        log.info("%s: %d of %d rows are there already; going on", output, done, len(split))
    for first, logits in score_windows(scorer, split, done):
        if accelerator.is_main_process:
            last = first + len(logits)
            probabilities = calibrated(logits, calibration, run.labels)
            predicted = apply_thresholds(probabilities, thresholds, run.labels)
            true = None if split.labels is None else split.labels[first:last]
            partial.append(prediction_lines(split.ids(first, last), probabilities, predicted, true, run.labels), logits)
            log.info("%d of %d rows", last, len(split))
    metrics = None
    if accelerator.is_main_process:
        if split.labels is not None:
            evaluation = evaluate_logits(partial.logits(), split.labels, run.labels, thresholds, calibration)
            true, predicted = as_marks(split.labels, run.labels), evaluation.predicted
            metrics = evaluation.metrics | uncertainty(true, predicted, run.labels)
            write_json(output.with_name(f"{output.stem}.metrics.json"), metrics)
            log.info("micro-F1 %.4f  macro-F1 %.4f", metrics["f1_micro"], metrics["f1_macro"])
        partial.finish()
        log.info("%d predictions -> %s", len(split), output)
    accelerator.wait_for_everyone()
    return metrics


def predict_ensemble(runs: list[TrainedRun], input_path: str, output: Path, accelerator: Accelerator) -> None:
    """Predict with each run in turn, and write the mean of their probabilities, decided at their mean thresholds.

    Each run's own predictions lie in ``<output>.members`` until all are there: an ensemble that was cut off goes on.

    Raises
    ------
    UserMistake: runs of different labels.
    """
    first = runs[0]
    for run in runs:
        if run.labels != first.labels:
            raise UserMistake(f"{run.folder} has other labels than {first.folder}; only runs on the same labels agree")
    folder = output.with_name(f"{output.name}.members")
    paths = [folder / f"{i}.jsonl" for i in range(len(runs))]
    for run, path in zip(runs, paths, strict=True):
        done = path.with_suffix(".done")
        signature = _signature(run, input_path)
        if not (done.exists() and done.read_text(encoding="utf-8") == signature):
            predict(run, input_path, path, accelerator)
            if accelerator.is_main_process:
                write_text(done, signature)
        accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _write_mean(runs, paths, output)
        shutil.rmtree(folder)
        log.info("mean of %d runs -> %s", len(runs), output)
    accelerator.wait_for_everyone()


def _write_mean(runs: list[TrainedRun], paths: list[Path], output: Path) -> None:
    labels = runs[0].labels
    each = [load_thresholds(run.folder / "thresholds.json", labels.names) for run in runs]
    values = np.mean([t.values for t in each], axis=0).tolist()
    thresholds = Thresholds("mean", values, any(t.at_least_one for t in each))
    true: list[Any] = []
    means, decisions = [], []
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(path.open(encoding="utf-8")) for path in paths]
        temporary = stack.enter_context(replacing(output))
        out = stack.enter_context(temporary.open("w", encoding="utf-8", newline="\n"))
        for lines in zip(*files, strict=True):
            rows = [json.loads(line) for line in lines]
            scores = np.array([[row["probabilities"][n] for n in labels.names] for row in rows], np.float32)
            mean = scores.mean(axis=0, keepdims=True)
            predicted = apply_thresholds(mean, thresholds, labels)
            marks = None
            if "true" in rows[0]:
                marks = np.array([[n in rows[0]["true"] for n in labels.names]], dtype=np.float32)
                means.append(mean[0])
                decisions.append(predicted[0])
                true.append(marks[0] if labels.multi_label else int(marks[0].argmax()))
            out.writelines(prediction_lines([rows[0]["id"]], mean, predicted, marks, labels))
    if true:
        values = np.array(true)
        metrics = evaluate_predictions(np.array(means), values, np.array(decisions), labels.names)
        metrics |= uncertainty(as_marks(values, labels), np.array(decisions), labels)
        write_json(output.with_name(f"{output.stem}.metrics.json"), metrics)
        log.info("micro-F1 %.4f  macro-F1 %.4f", metrics["f1_micro"], metrics["f1_macro"])


def _tokenized(run: TrainedRun, input_path: str, accelerator: Accelerator) -> Split:
    """The input, with labels where it has all label columns."""
    if not sys.stderr.isatty() or not accelerator.is_main_process:
        datasets.disable_progress_bars()
    with accelerator.local_main_process_first():
        table = read_table(input_path, "--input")
        labelled = all(column in table.column_names for column in run.labels.columns)
        tokenizer = load_tokenizer(run.recipe.model)
        return tokenize_split(table, "input", input_path, run.recipe, tokenizer, run.labels, labelled)


def _signature(run: TrainedRun, input_path: str) -> str:
    """A digest of everything that decides the lines: input, weights, thresholds, recipe."""
    digest = hashlib.sha256(run.recipe.model.model_name.encode())
    files = sorted(p for p in (run.folder / "model").iterdir() if p.is_file())
    decisions = [run.folder / "thresholds.json", run.folder / "calibration.json"]
    for path in [Path(input_path), *(p for p in decisions if p.exists()), *files]:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


if __name__ == "__main__":
    run_command(main)
