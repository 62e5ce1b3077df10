"""What a rehearsal launches in each process: ``-m llmcls.rehearsal.worker MODULE [ARGUMENT ...]``.

Runs a command as ``python -m MODULE ARGUMENT ...`` would, on CPU processes that stand in for GPUs.
"""

from __future__ import annotations

import os
import runpy
import sys

from llmcls.rehearsal.cpu_stand_in import stand_in_for_gpus


def main(argv: list[str]) -> None:
    """Run the module ``argv[0]`` with the arguments after it."""
    if any(os.environ.get(f"ACCELERATE_USE_{engine}", "").lower() == "true" for engine in ("FSDP", "DEEPSPEED")):
        stand_in_for_gpus()
    sys.argv = argv
    runpy.run_module(argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
