"""What tests/engine/test_agreement.py starts on two processes: ``agreement_worker.py CASE FOLDER [RECIPE]``."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from transformers import LlamaConfig, LlamaForSequenceClassification

from llmcls.common.command import run_command
from llmcls.common.signals import STOP_AFTER, Interrupted
from llmcls.engine.agreement import first_process_first, from_main
from llmcls.model.classifier import Classifier
from llmcls.recipe.load import load_recipe
from llmcls.results.run_folder import RunFolder
from llmcls.train import train_seeds
from llmcls.training import best_checkpoints
from llmcls.training.best_checkpoints import load_best, save_best


def patience(folder: Path) -> None:
    """The main process works for longer than the process group waits for a collective."""
    accelerator = Accelerator(cpu=True, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=2))])
    with first_process_first(accelerator, accelerator.is_main_process):
        if accelerator.is_main_process:
            time.sleep(5)
            (folder / "made").write_text("by the main process")
        found = (folder / "made").read_text()
    save_slowly(folder, accelerator)
    told = from_main(accelerator, f"rank {accelerator.process_index}")
    (folder / f"rank{accelerator.process_index}").write_text(f"{found}; {told}")


def save_slowly(folder: Path, accelerator: Accelerator) -> None:
    """Save a model to a disk that needs longer than the process group waits for a collective."""
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    network = LlamaForSequenceClassification(LlamaConfig(**sizes, num_attention_heads=1, pad_token_id=0))
    fast = best_checkpoints.save_file

    def slow(*arguments: Any, **options: Any) -> None:
        time.sleep(5)
        fast(*arguments, **options)

    best_checkpoints.save_file = slow
    run, model = RunFolder(folder / "run"), Classifier(network, None, "last")
    save_best(run, accelerator, model, keep=1, step=1)
    load_best(run, accelerator, model)


def resume(folder: Path, recipe_path: str) -> None:
    """Train and stop; then resume while one rank sees another file system: its current folder is another one."""
    recipe = load_recipe(recipe_path, ["exp.output_root=outputs"])
    accelerator = Accelerator(cpu=True)
    os.chdir(folder)
    os.environ[STOP_AFTER] = "3"
    try:
        train_seeds(recipe, accelerator)
    except Interrupted:
        os.environ[STOP_AFTER] = "-1"
    if not accelerator.is_main_process:
        (folder / "elsewhere").mkdir()
        os.chdir(folder / "elsewhere")
    train_seeds(recipe, accelerator)


def main(case: str, folder: str, *more: str) -> None:
    {"patience": patience, "resume": resume}[case](Path(folder), *more)


if __name__ == "__main__":
    run_command(lambda: main(*sys.argv[1:]))
