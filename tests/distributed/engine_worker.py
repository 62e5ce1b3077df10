"""What test_engines.py starts on two processes: trains inside one engine, several runs after each other.

    engine_worker.py RECIPE PLAN.json REPORTS key=value ...

PLAN.json is a list of ``{"overrides": [...], "stop_after": N or null}``, some with "broken" and "dies" for `trouble`.
Each rank writes what it held of the model and the optimizer after the first step of a run to
REPORTS/<run name>-rank<R>.json.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState

from llmcls.common.command import run_command
from llmcls.common.signals import STOP_AFTER, Interrupted
from llmcls.engine.accelerator import engine_name, open_accelerator
from llmcls.model.pretrained import AUTOCAST
from llmcls.recipe.load import load_recipe
from llmcls.rehearsal.cpu_stand_in import stand_in_for_gpus
from llmcls.train import train_seeds
from llmcls.training import loop
from tests.distributed.trouble import Died, trouble


class ReportedShards:
    """`check_shards`, which also writes what it found to a file."""

    def __init__(self, check: Callable[..., dict[str, int]], folder: Path) -> None:
        self.check, self.folder = check, folder

    def of(self, run_name: str, accelerator: Accelerator) -> None:
        """Name the run that trains next."""
        self.known: dict[str, Any] = {"engine": engine_name(accelerator), "processes": accelerator.num_processes}
        self.file = self.folder / f"{run_name}-rank{accelerator.process_index}.json"

    def __call__(self, *arguments: Any) -> dict[str, int]:
        sizes = self.check(*arguments)
        self.file.write_text(json.dumps(sizes | self.known))
        return sizes


def main(argv: list[str]) -> None:
    """Work through the plan."""
    recipe, plan, reports, *overrides = argv
    if any(f"ACCELERATE_USE_{engine}" in os.environ for engine in ("FSDP", "DEEPSPEED")):
        stand_in_for_gpus()
    check_and_report = ReportedShards(loop.check_shards, Path(reports))
    loop.check_shards = check_and_report
    accelerator: Accelerator | None = None
    for part in json.loads(Path(plan).read_text()):
        changed = load_recipe(recipe, [*overrides, *part["overrides"]])
        # The precision of autocast belongs to the accelerator; the process group stays.
        if accelerator is None or accelerator.mixed_precision != AUTOCAST[changed.model.torch_dtype]:
            AcceleratorState._reset_state(reset_partial_state=True)
            accelerator = open_accelerator(changed)
        check_and_report.of(changed.exp.run_name, accelerator)
        os.environ[STOP_AFTER] = str(part["stop_after"] or -1)
        try:
            with trouble(part.get("broken"), part.get("dies")) if "broken" in part else nullcontext():
                train_seeds(changed, accelerator)
            assert part["stop_after"] is None
        except Interrupted:
            assert part["stop_after"] is not None
        except Died:
            assert part["dies"] is not None
    assert accelerator is not None
    accelerator.end_training()


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
