"""What test_engines.py starts on two processes: trains inside one engine, several runs after each other.

    engine_worker.py RECIPE PLAN.json REPORTS key=value ...

PLAN.json is a list of ``{"overrides": [...], "stop_after": N or null}``. Each rank writes what it held of the
model and the optimizer after its first step to REPORTS/rank<R>.json.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from llmcls import loop, run_command
from llmcls.engine import check_shards, engine_name, open_accelerator
from llmcls.interrupt import STOP_AFTER, Interrupted
from llmcls.recipe import load_recipe
from llmcls.train import train_seeds


def main(argv: list[str]) -> None:
    """Work through the plan."""
    recipe, plan, reports, *overrides = argv
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
            train_seeds(load_recipe(recipe, [*overrides, *part["overrides"]]), accelerator)
            assert part["stop_after"] is None
        except Interrupted:
            assert part["stop_after"] is not None
    accelerator.end_training()


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
