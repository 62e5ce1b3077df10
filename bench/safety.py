"""What it costs that nothing is lost: the check for gradients that are no numbers, and checkpoints by time.

    python bench/safety.py [--steps 240] [section.key=value ...]

Steps with and without take turns in one run, so that a change of the machine's speed hits both. On a CPU, the time is
that of this process and its threads, so that other programs do not count. `plain` is the loop
without the check: it clips the gradient, and reads nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from bench.material import machine, prepare, write_section  # noqa: E402
from llmcls.data.batches import plan_epoch  # noqa: E402
from llmcls.data.steps import global_batch_size  # noqa: E402
from llmcls.engine.accelerator import open_accelerator, unwrapped  # noqa: E402
from llmcls.engine.accelerator import prepare as prepare_engine  # noqa: E402
from llmcls.model.build import build_classifier  # noqa: E402
from llmcls.results.run_folder import RunFolder  # noqa: E402
from llmcls.training import loop  # noqa: E402
from llmcls.training.checkpoints import Progress  # noqa: E402
from llmcls.training.finite import GradientWatch  # noqa: E402
from llmcls.training.inputs import load_inputs  # noqa: E402
from llmcls.training.interval import LoggingInterval  # noqa: E402
from llmcls.training.loop import collated, optimizer_step  # noqa: E402
from llmcls.training.optimizer import build_optimizer  # noqa: E402
from llmcls.training.setup import TrainingSetup  # noqa: E402
from llmcls.training.timed_checkpoints import TimedCheckpoints  # noqa: E402

# Steps of a window in which a checkpoint is written.
WINDOW = 10


def clip_only(accelerator: Any, model: Any, largest: float) -> None:
    """What `gradient_norm` was without the check."""
    accelerator.clip_grad_norm_(model.parameters(), largest)


def measure(folder: Path, steps: int, overrides: list[str]) -> dict[str, Any]:
    """Seconds of a step without and with the check, and of a window without and with a checkpoint.

    Parameters
    ----------
    folder : Path
        Where data, model and checkpoints are written.
    steps : int
    overrides : list of str
        Of the recipe.
    """
    material = prepare(folder, 400, 40)
    recipe = material.recipe("batch_size=8", "gradient_accumulation_steps=2", "save_minutes=10", *overrides)
    accelerator = open_accelerator(recipe)
    inputs = load_inputs(recipe, accelerator)
    model = build_classifier(recipe, inputs.labels, accelerator.device)
    unprepared: Any = build_optimizer(model, recipe, accelerator.device)
    prepared, optimizer = prepare_engine(accelerator, model, unprepared)
    rows, split = global_batch_size(recipe, 1), inputs.train_split
    setup = TrainingSetup(
        recipe, 0, RunFolder(folder / "run"), accelerator, inputs.labels, split, None, rows, unwrapped(prepared).packs,
        4096,
    )  # fmt: skip
    progress = Progress(0, rows)
    interval, timed = LoggingInterval(progress, accelerator.device), TimedCheckpoints(setup)
    watch, checked = GradientWatch(setup, progress, interval), loop.gradient_norm
    clock = time.process_time if accelerator.device.type == "cpu" else time.perf_counter
    prepared.train()
    plan = next(iter(plan_epoch(split.lengths, setup.batches, 0, 0)))
    with collated(setup, [plan], inputs.tokenizer.pad_token_id) as found:
        step, batches = next(found)

    def run(number: int, check: bool) -> float:
        loop.gradient_norm = checked if check else clip_only  # type: ignore[assignment]
        started = clock()
        taken = optimizer_step(setup, prepared, optimizer, step, batches, number)
        watch.add(number, step, taken)
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - started

    for number in range(4):
        run(number, True)
    plain, with_check = [], []
    for number in range(steps // 2):
        # Which comes first takes turns, too.
        for check in (number % 2 == 0, number % 2 == 1):
            (with_check if check else plain).append(run(number, check))
    windows: dict[bool, list[float]] = {False: [], True: []}
    for number in range(max(2, steps // WINDOW // 2)):
        for saving in (number % 2 == 0, number % 2 == 1):
            started = clock()
            if saving:
                timed.save(prepared, optimizer, progress)
            for k in range(WINDOW):
                run(k, True)
            if saving:
                timed.wait()
            windows[saving].append(clock() - started)
    return {
        "plain": float(np.median(plain)),
        "check": float(np.median(with_check)),
        "more": float(np.median(np.array(with_check) / plain) - 1),
        "window": float(np.median(windows[False])),
        "saving": float(np.median(windows[True])),
        "extra": float(np.median(np.array(windows[True]) - windows[False])),
        "minutes": recipe.train.save_minutes,
        "model": Path(material.model).name,
    }


def main() -> None:
    """Measure, and write the section of results.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), arguments.steps, arguments.overrides)
    extra = found["extra"]
    share = extra / (60 * found["minutes"])
    lines = [
        f"{machine()}. {found['model']}, 16 texts a step. Steps with and without take turns in one run; medians of "
        f"{arguments.steps} steps. (`bench/safety.py`)", "",
        "| | without | with | difference |", "|---|---|---|---|",
        f"| check of the gradient, ms a step | {1e3 * found['plain']:.2f} | {1e3 * found['check']:.2f} | "
        f"{100 * found['more']:+.2f} % |",
        f"| checkpoint by time, ms of {WINDOW} steps | {1e3 * found['window']:.1f} | {1e3 * found['saving']:.1f} | "
        f"{1e3 * extra:+.0f} ms, {100 * share:.3f} % every {found['minutes']:g} minutes |",
    ]  # fmt: skip
    write_section("What safety costs", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
