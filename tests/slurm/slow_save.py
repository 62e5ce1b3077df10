"""Stands for a training whose checkpoint takes a while: ``slow_save.py FOLDER``, started by a job of test_slurm.py."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from llmcls.common.signals import EXIT_INTERRUPTED, stop_requested, stops_between_steps, watch_signals


def main(folder: Path) -> None:
    watch_signals()
    with stops_between_steps():
        (folder / "ready").touch()
        while not stop_requested():
            time.sleep(0.1)
        time.sleep(3)
        (folder / "saved").touch()
    sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
