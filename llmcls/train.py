"""The training command: ``accelerate launch --config_file PROFILE -m llmcls.train RECIPE [key=value ...]``.

Reads top to bottom: load the recipe, load the data once, and for each seed build the model, run the loop,
evaluate, and write the run folder; then summarise the seeds.
"""

from __future__ import annotations

import argparse
import difflib
import gc
import logging
import os
import platform
import shutil
import sys
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import datasets
import torch
import yaml
from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed

from llmcls import UserMistake, __version__, run_command
from llmcls.base import load_tokenizer
from llmcls.baselines import baselines_of
from llmcls.batching import step_rows
from llmcls.budget import resolve_budget
from llmcls.calibration import save_calibration
from llmcls.checkpoints import Progress, differing_keys, load_best, load_last, save_model
from llmcls.data import Split, tokenize_split, warn_about_split
from llmcls.engine import engine_name, open_accelerator, prepare, shards_state, unwrapped
from llmcls.evaluate import make_scorer
from llmcls.files import write_json, write_text
from llmcls.final import final_metrics
from llmcls.interrupt import EXIT_INTERRUPTED, Interrupted, watch_signals
from llmcls.labels import LabelSpace, label_space
from llmcls.loop import Run, train_loop
from llmcls.metrics import METRIC_NAMES
from llmcls.model import build_classifier, count_parameters
from llmcls.optim import build_optimizer, optimizer_name
from llmcls.recipe import Recipe, load_recipe, recipe_to_dict, recipe_to_yaml
from llmcls.report import experiment_folder, write_report, write_summary
from llmcls.tables import read_table
from llmcls.thresholds import fixed_thresholds, save_thresholds
from llmcls.tracking import RunLog, configure_logging

# By name: as a command this module is called "__main__".
log = logging.getLogger("llmcls.train")


@dataclass
class Inputs:
    """What all seeds share."""

    tokenizer: Any
    labels: LabelSpace
    train: Split
    validation: Split | None
    test: Split | None
    baselines: dict[str, Any] | None = None


def main(argv: list[str] | None = None) -> None:
    """Train every seed of a recipe and write the summary."""
    parser = argparse.ArgumentParser(prog="llmcls.train", description="Fine-tune a text classifier.")
    parser.add_argument("recipe", help="a recipe YAML")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that replace the recipe's")
    arguments = parser.parse_args(argv)
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    check_metric(recipe)
    accelerator = open_accelerator(recipe)
    configure_logging(accelerator.is_main_process)
    watch_signals()
    try:
        train_seeds(recipe, accelerator)
    except Interrupted as stop:
        log.info("%s; the same command goes on from there", stop)
        sys.exit(EXIT_INTERRUPTED)
    finally:
        accelerator.end_training()


def train_seeds(recipe: Recipe, accelerator: Accelerator) -> None:
    """Every seed in turn, then the summary."""
    root = experiment_folder(recipe)
    folders = [root / f"run_{i}" for i in range(len(recipe.exp.seeds))]
    for folder, seed in zip(folders, recipe.exp.seeds, strict=True):
        claim_folder(folder, recipe, seed, accelerator)
    accelerator.wait_for_everyone()
    inputs = load_inputs(recipe, accelerator)
    if accelerator.is_main_process:
        inputs.baselines = baselines_of(recipe, inputs.labels, root / "baselines.json")
    accelerator.wait_for_everyone()
    for folder, seed in zip(folders, recipe.exp.seeds, strict=True):
        if (folder / "metrics.json").exists():
            log.info("seed %d: finished before, kept as it is (%s)", seed, folder)
            continue
        train_one_seed(recipe, seed, folder, inputs, accelerator)
    if accelerator.is_main_process:
        summary = write_summary(root, folders, inputs.baselines)
        log.info("summary: %s\n%s", root / "summary.md", summary)


def train_one_seed(recipe: Recipe, seed: int, folder: Path, inputs: Inputs, accelerator: Accelerator) -> None:
    """Train one seed, or go on with it, and write everything its run folder holds."""
    set_seed(seed)
    model = build_classifier(recipe, inputs.labels, accelerator.device)
    optimizer = build_optimizer(model, recipe, accelerator.device, shards_state(accelerator))
    trainable, whole = count_parameters(model)
    model, optimizer = prepare(accelerator, model, optimizer)
    rows = step_rows(recipe, accelerator.num_processes)
    progress = load_last(folder / "checkpoints", accelerator, model, optimizer) or Progress(seed, rows)
    run = Run(
        recipe=recipe,
        seed=seed,
        folder=folder,
        accelerator=accelerator,
        labels=inputs.labels,
        thresholds=fixed_thresholds(len(inputs.labels.names), at_least_one=recipe.train.at_least_one_label),
        train=inputs.train,
        validation=inputs.validation,
        run_log=None,
        step_rows=progress.step_rows,
        packed=unwrapped(model).packs,
        max_tokens=resolve_budget(recipe, accelerator, model),
    )
    if accelerator.is_main_process:
        name = "/".join(folder.parts[-3:])
        run.run_log = RunLog(folder, recipe, name, progress.step)
        write_json(folder / "environment.json", environment(accelerator, optimizer))
    log.info(
        "seed %d: %s trainable of %s parameters, %s, %s x %d on %s, %d optimizer steps -> %s",
        seed, f"{trainable:,}", f"{whole:,}", optimizer_name(optimizer), engine_name(accelerator),
        accelerator.num_processes, accelerator.device.type, run.total_steps, folder,
    )  # fmt: skip
    if progress.step:
        log.info("seed %d: going on after step %d", seed, progress.step)
        if progress.step_rows != rows:
            log.info("an optimizer step stays at the %d texts it began with", progress.step_rows)
    scorer = make_scorer(accelerator, model, inputs.labels, inputs.tokenizer.pad_token_id, recipe)
    try:
        train_loop(run, model, optimizer, scorer, progress)
        load_best(folder / "checkpoints", accelerator, model)
        saving = (folder / "model", accelerator, model, inputs.tokenizer, inputs.labels, run_recipe(recipe, seed))
        if shards_state(accelerator):
            # Writing on one rank disturbs the gathering of shards in a forward pass that follows.
            metrics = final_metrics(run, scorer, inputs.test, progress)
            save_model(*saving)
        else:
            save_model(*saving)
            # As `predict` does, so that both sum in the same order and agree to the last bit.
            unwrapped(model).merge_adapter()
            metrics = final_metrics(run, scorer, inputs.test, progress)
        if accelerator.is_main_process:
            save_thresholds(folder / "thresholds.json", run.thresholds, inputs.labels.names)
            save_calibration(folder / "calibration.json", run.calibration)
            write_report(folder, recipe, metrics, inputs.baselines)
            # Last of all: its presence says that the run is complete.
            write_json(folder / "metrics.json", metrics)
        accelerator.wait_for_everyone()
    finally:
        if run.run_log is not None:
            run.run_log.close()
        # The next seed needs the memory of this one, and accelerate would take the old model for a second one.
        accelerator.free_memory()
    del model, optimizer, scorer
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def load_inputs(recipe: Recipe, accelerator: Accelerator | PartialState) -> Inputs:
    """Tokenizer, labels and the three splits; the first process of a machine tokenizes, the others read its cache."""
    if not sys.stderr.isatty() or not accelerator.is_main_process:
        datasets.disable_progress_bars()
    tokenizer = load_tokenizer(recipe.model)
    data = recipe.data
    with accelerator.local_main_process_first():
        table = read_table(data.train_csv, "data.train_csv")
        labels = label_space(recipe, table)
        splits: dict[str, Split | None] = {}
        for name, path in (("train", data.train_csv), ("validation", data.val_csv), ("test", data.test_csv)):
            if path is None:
                splits[name] = None
                continue
            table = (
                table if name == "train" else read_table(path, f"data.{'val' if name == 'validation' else name}_csv")
            )
            split = tokenize_split(table, name, path, recipe, tokenizer, labels)
            warn_about_split(split, labels, data.max_length)
            splits[name] = split
    return Inputs(tokenizer, labels, splits["train"], splits["validation"], splits["test"])


def claim_folder(folder: Path, recipe: Recipe, seed: int, accelerator: Accelerator) -> None:
    """Make the run folder, or see that what lies in it is this very run, to be gone on with."""
    conflict_with(folder, recipe, seed)
    # Every rank looks before the main one writes, or a slow rank would see the new files.
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if recipe.exp.overwrite:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "recipe.yaml", recipe_to_yaml(run_recipe(recipe, seed)))


def conflict_with(folder: Path, recipe: Recipe, seed: int) -> None:
    """Raise a `UserMistake` when another recipe's or seed's run is in ``folder`` and may not be replaced."""
    saved = folder / "recipe.yaml"
    if recipe.exp.overwrite or not saved.exists():
        return
    old = yaml.safe_load(saved.read_text(encoding="utf-8"))
    differing = differing_keys(old, recipe)
    if old["exp"]["seeds"] != [seed]:
        differing.insert(0, "exp.seeds")
    if differing:
        section, _, key = differing[0].partition(".")
        now = [seed] if key == "seeds" else recipe_to_dict(recipe)[section][key]
        more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
        raise UserMistake(
            f"{folder} holds a run of another recipe: {differing[0]} was {old[section].get(key)!r}, is now {now!r}"
            f"{more}; set exp.run_name to keep both, or exp.overwrite=true to replace it"
        )


def run_recipe(recipe: Recipe, seed: int) -> Recipe:
    """The recipe of a single run: the same with this seed alone, and no permission to overwrite."""
    return replace(recipe, exp=replace(recipe.exp, seeds=[seed], overwrite=False))


def check_metric(recipe: Recipe) -> None:
    """Refuse a ``metric_for_best_model`` that evaluation does not compute."""
    name = recipe.train.metric_for_best_model
    if name not in METRIC_NAMES:
        near = difflib.get_close_matches(name, METRIC_NAMES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(METRIC_NAMES))}"
        raise recipe.mistake("train.metric_for_best_model", f"is {name!r}, which is not computed; {hint}")


def environment(accelerator: Accelerator, optimizer: Any) -> dict[str, Any]:
    """What a run was made with: versions, devices, processes. No paths, no secrets."""
    packages = {}
    for name in ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "deepspeed", "datasets"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {
        "llmcls": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": packages,
        "engine": engine_name(accelerator),
        "processes": accelerator.num_processes,
        "device": torch.cuda.get_device_name() if accelerator.device.type == "cuda" else accelerator.device.type,
        "mixed_precision": accelerator.mixed_precision,
        "optimizer": optimizer_name(optimizer),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
    }


if __name__ == "__main__":
    run_command(main)
