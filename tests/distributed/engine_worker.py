"""What test_engines.py starts on two processes: trains inside one engine, several runs after each other.

    engine_worker.py RECIPE PLAN.json REPORTS key=value ...

PLAN.json is a list of ``{"overrides": [...], "stop_after": N or null}``, some with "broken" and "dies" for `trouble`.
Each rank writes what it held of the model and the optimizer after its first step to REPORTS/rank<R>.json.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from llmcls.common.command import run_command
from llmcls.common.signals import STOP_AFTER, Interrupted
from llmcls.engine.accelerator import engine_name, open_accelerator
from llmcls.engine.shards import check_shards
from llmcls.recipe.load import load_recipe
from llmcls.rehearsal.cpu_stand_in import stand_in_for_gpus
from llmcls.train import train_seeds
from llmcls.training import loop
from tests.distributed.trouble import Died, trouble


def main(argv: list[str]) -> None:
    """Work through the plan."""
    recipe, plan, reports, *overrides = argv
    if any(f"ACCELERATE_USE_{engine}" in os.environ for engine in ("FSDP", "DEEPSPEED")):
        stand_in_for_gpus()
    accelerator = open_accelerator(load_recipe(recipe, overrides))

    def check_and_report(*arguments: Any) -> dict[str, int]:
        sizes = check_shards(*arguments)
        report = sizes | {"engine": engine_name(accelerator), "processes": accelerator.num_processes}
        Path(reports, f"rank{accelerator.process_index}.json").write_text(json.dumps(report))
        return sizes

    loop.check_shards = check_and_report
    for part in json.loads(Path(plan).read_text()):
        os.environ[STOP_AFTER] = str(part["stop_after"] or -1)
        try:
            with trouble(part.get("broken"), part.get("dies")) if "broken" in part else nullcontext():
                train_seeds(load_recipe(recipe, [*overrides, *part["overrides"]]), accelerator)
            assert part["stop_after"] is None
        except Interrupted:
            assert part["stop_after"] is not None
        except Died:
            assert part["dies"] is not None
    accelerator.end_training()


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
