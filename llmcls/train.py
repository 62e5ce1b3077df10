"""The training command: ``llmcls train RECIPE [key=value ...]``.

With ``--profile`` it starts the processes of ``accelerate launch --config_file PROFILE -m llmcls.train RECIPE``, which
run this module; without, it trains in its own process.

The module reads from top to bottom: load the recipe, load the data once, and for each seed build the model, train,
evaluate, and write the run folder; then summarise the seeds.
"""

from __future__ import annotations

import functools
import gc
import logging
import sys
from typing import Any

from llmcls.common.command import begin_imports, run_command

if __name__ == "__main__":
    # The imports below take seconds.
    begin_imports()

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from llmcls.common.logs import configure_logging
from llmcls.common.signals import EXIT_INTERRUPTED, Interrupted, interrupted_code, watch_signals
from llmcls.common.user_error import UserError
from llmcls.data.steps import global_batch_size
from llmcls.engine.accelerator import (
    autocast_dtype,
    engine_name,
    loading_device,
    open_accelerator,
    prepare,
    shards_state,
    unwrapped,
)
from llmcls.engine.agreement import first_process_first, from_main
from llmcls.evaluation.baselines import store_baselines
from llmcls.evaluation.calibration import save_calibration
from llmcls.evaluation.scoring import make_scorer
from llmcls.evaluation.thresholds import save_thresholds
from llmcls.model.build import build_classifier
from llmcls.model.classifier import count_parameters
from llmcls.recipe.defaults import checkpoints_activations
from llmcls.recipe.load import load_recipe
from llmcls.recipe.schema import Recipe
from llmcls.results.dashboard import dashboard_of, reference_values
from llmcls.results.model_card import write_model_card
from llmcls.results.report import render_experiment_report, write_report
from llmcls.results.run_folder import ExperimentFolder, RunFolder, recipe_of_run
from llmcls.results.seal import finish_run
from llmcls.results.summary import write_summary
from llmcls.training.best_checkpoints import load_best
from llmcls.training.checkpoints import Progress, load_last, save_model
from llmcls.training.claim import claim_run_folder, claim_validation_rows, claimed_experiment
from llmcls.training.environment import environment, write_environment
from llmcls.training.final_evaluation import FinalEvaluation, evaluate_run
from llmcls.training.inputs import Inputs, load_inputs
from llmcls.training.launcher import launch_training, train_parser, wants_processes
from llmcls.training.loop import train_loop
from llmcls.training.optimizer import build_optimizer, optimizer_name
from llmcls.training.out_of_memory import out_of_memory_elsewhere
from llmcls.training.recomputation import needed_gib, settle_recomputation
from llmcls.training.setup import TrainingSetup
from llmcls.training.token_budget import budget_key, resolve_token_budget
from llmcls.training.trackers import check_trackers
from llmcls.training.tracking import RunLog
from llmcls.training.utilisation import token_flops
from llmcls.training.warm_start import warm_start
from llmcls.training.watchdog import watched

# Named explicitly, because as a command this module is called "__main__".
log = logging.getLogger("llmcls.train")


def main(argv: list[str] | None = None) -> None:
    """Train every seed of a recipe and write the summary."""
    arguments = train_parser().parse_intermixed_args(argv)
    if wants_processes(arguments):
        launch_training(arguments)
        return
    watch_signals()
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    accelerator = open_accelerator(recipe)
    configure_logging(accelerator.is_main_process)
    check_trackers(recipe)
    try:
        with claimed_experiment(recipe, accelerator):
            train_seeds(recipe, accelerator)
    except Interrupted as stop:
        log.info("%s; run the same command again to resume", stop)
        sys.exit(interrupted_code(EXIT_INTERRUPTED))
    except torch.OutOfMemoryError as error:
        raise out_of_memory_elsewhere(recipe, error) from error
    except RuntimeError as error:
        if "does not have a deterministic implementation" not in str(error):
            raise
        raise recipe.error("train.deterministic", f"is true, but {_first_clause(error)}; set it to false") from error
    finally:
        # After an error of this rank alone, the others may wait in an exchange; ending the group would wait for them.
        if accelerator.num_processes == 1 or not isinstance(sys.exception(), UserError):
            accelerator.end_training()


def train_seeds(recipe: Recipe, accelerator: Accelerator) -> None:
    """Train every seed, one after the other, and write the summary.

    Parameters
    ----------
    recipe : Recipe
    accelerator : Accelerator

    Raises
    ------
    UserError
        If data, model or recipe do not match, or a run folder belongs to another recipe.
    Interrupted
        If a signal stopped the training; the checkpoint is saved.
    """
    experiment = ExperimentFolder.of(recipe)
    runs = [experiment.run(i) for i in range(len(recipe.exp.seeds))]
    for run, seed in zip(runs, recipe.exp.seeds, strict=True):
        claim_run_folder(run, recipe, seed, accelerator)
    accelerator.wait_for_everyone()
    inputs = load_inputs(recipe, accelerator)
    claim_validation_rows(experiment, recipe, inputs.validation_split, accelerator)
    with first_process_first(accelerator, accelerator.is_main_process):
        if accelerator.is_main_process:
            store_baselines(recipe, inputs.labels, experiment.baselines)
    for run, seed in zip(runs, recipe.exp.seeds, strict=True):
        if from_main(accelerator, run.metrics.exists()):
            log.info("seed %d: already finished, nothing to do (%s)", seed, run.path)
            continue
        train_one_seed(recipe, seed, run, inputs, accelerator)
    if accelerator.is_main_process:
        summary = write_summary(experiment, runs)
        log.info("report: %s", render_experiment_report(runs))
        # The verdict, at the end of the summary, is the last thing on the screen.
        log.info("summary: %s\n%s", experiment.summary, summary)


def train_one_seed(recipe: Recipe, seed: int, run: RunFolder, inputs: Inputs, accelerator: Accelerator) -> None:
    """Train one seed, or resume it, and write everything in its run folder.

    Parameters
    ----------
    recipe : Recipe
    seed : int
    run : RunFolder
        Claimed for this recipe and seed.
    inputs : Inputs
        The data, loaded once for all seeds.
    accelerator : Accelerator
    """
    try:
        _train_and_evaluate(recipe, seed, run, inputs, accelerator)
    finally:
        # Free the memory for the next seed. Accelerate would also treat the old model as a second one.
        accelerator.free_memory()
    # The parts of a model refer to each other.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _train_and_evaluate(recipe: Recipe, seed: int, run: RunFolder, inputs: Inputs, accelerator: Accelerator) -> None:
    """What `train_one_seed` does while it holds a model."""
    set_seed(seed)
    ranks = accelerator.num_processes
    settled = settle_recomputation(recipe, run, accelerator, lambda r: needed_gib(r, inputs, accelerator))
    placement = (accelerator.device, loading_device(accelerator), autocast_dtype(accelerator))
    classifier = build_classifier(settled, inputs.labels, *placement)
    trainable, total = count_parameters(classifier)
    flops = token_flops(classifier)
    optimizer: Any = build_optimizer(classifier, recipe, accelerator.device, shards_state(accelerator))
    model, optimizer = prepare(accelerator, classifier, optimizer)
    rows = global_batch_size(recipe, ranks)
    progress = load_last(run, accelerator, model, optimizer) or Progress(seed, rows)
    max_tokens = resolve_token_budget(settled, accelerator, model, inputs.labels)
    with first_process_first(accelerator, accelerator.is_main_process):
        if accelerator.is_main_process:
            found = environment(recipe, accelerator, optimizer, checkpoints_activations(settled))
            write_environment(run, found, max_tokens, progress.step)
    setup = TrainingSetup(
        recipe=recipe,
        seed=seed,
        folder=run,
        accelerator=accelerator,
        labels=inputs.labels,
        train_split=inputs.train_split,
        validation_split=inputs.validation_split,
        global_batch_size=progress.global_batch_size,
        packed=unwrapped(model).packs,
        max_tokens=max_tokens,
        run_log=RunLog(run, recipe_of_run(recipe, seed), progress.step) if accelerator.is_main_process else None,
        token_flops=flops,
        budget_key=budget_key(settled, accelerator),
    )
    log.info(
        "seed %d: %s trainable of %s parameters, %s, %s x %d on %s, %d optimizer steps -> %s",
        seed, f"{trainable:,}", f"{total:,}", optimizer_name(optimizer), engine_name(accelerator),
        accelerator.num_processes, accelerator.device.type, setup.total_steps, run.path,
    )  # fmt: skip
    if progress.step:
        log.info("seed %d: resuming after step %d", seed, progress.step)
        if progress.global_batch_size != rows:
            log.info("optimizer steps keep the %d texts that the run started with", progress.global_batch_size)
    scorer = make_scorer(accelerator, model, inputs.labels, inputs.tokenizer.pad_token_id, recipe)
    try:
        with watched(run, recipe.train.stuck_minutes, accelerator):
            if not progress.step:
                warm_start(setup, model, scorer, inputs)
            if setup.run_log is not None:
                setup.run_log.draw_lines(setup.total_steps, reference_values(run.experiment, recipe))
            train_loop(setup, model, optimizer, scorer, progress)
            load_best(run, accelerator, model)
            saving = (run, accelerator, model, inputs.tokenizer, inputs.labels, recipe_of_run(recipe, seed))
            if shards_state(accelerator):
                # Writing on one rank can disturb the gathering of shards in a later forward pass, so evaluate first.
                final = evaluate_run(setup, scorer, inputs.test_split, progress)
                save_model(*saving)
            else:
                save_model(*saving)
                # `predict` merges the adapter as well. Both then add in the same order and agree to the last bit.
                unwrapped(model).merge_adapter()
                final = evaluate_run(setup, scorer, inputs.test_split, progress)
            with first_process_first(accelerator, accelerator.is_main_process):
                if accelerator.is_main_process:
                    _write_results(setup, final, progress.step)
    finally:
        if setup.run_log is not None:
            setup.run_log.close(sys.exception())


def _write_results(setup: TrainingSetup, final: FinalEvaluation, step: int) -> None:
    """Write what a trained run holds besides its model, and show it in the trackers. On the main process."""
    run, recipe, labels = setup.folder, recipe_of_run(setup.recipe, setup.seed), setup.labels
    save_thresholds(run.thresholds, final.thresholds, labels.names)
    save_calibration(run.calibration, final.calibration)
    write_report(run, recipe, final.metrics)
    write_model_card(run, recipe, final.metrics)
    finish_run(run, final.metrics)
    if setup.run_log is not None:
        setup.run_log.show(step, functools.partial(dashboard_of, run, recipe, labels, final.metrics))


def _first_clause(error: BaseException) -> str:
    return str(error).split(",")[0].splitlines()[0]


if __name__ == "__main__":
    run_command(main)
