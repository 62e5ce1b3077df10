"""A disk that fills up at random moments of a training: one sentence, nothing half-written, and a resume to the same.

    python -m tests.faults.full_disk --times 20

It mounts a small tmpfs, so it needs root on Linux.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import llmcls.train
from llmcls.common.command import run_command
from llmcls.results.run_folder import RunFolder
from llmcls.training.checkpoints import intact_checkpoint
from tests.faults.soak import WORKS, Soak, become_a_command, code_of, fork, result_of


def attempt(soak: Soak, root: Path, log: Path) -> int:
    """Train with the disk as it is; returns the exit code."""

    def work() -> None:
        become_a_command()
        arguments = [
            str(soak.root / "recipe.yaml"),
            f"exp.output_root={root / 'outputs'}",
            "exp.run_name=reference-0-0",
        ]
        run_command(lambda: llmcls.train.main(arguments))

    return code_of(fork(work, log))


def fill(soak: Soak, disk: Path, kilobytes: int, log: Path) -> list[str]:
    """Train on a disk of this size, then on one with space; what a user should not see."""
    problems = []
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)], check=True)
    try:
        code = attempt(soak, disk, log)
        said = log.read_text(encoding="utf-8")
        folder = disk / "outputs" / "tiny" / "products" / "reference-0-0"
        if code != 0:
            errors = [line for line in said.splitlines() if line.startswith("error: ")]
            if code != 2 or len(errors) != 1 or "full" not in errors[0] or "Traceback" in said:
                problems.append(f"{kilobytes} KB: exit code {code}, {errors or said[-600:]}")
            if left := [path for path in folder.rglob("*.partial") if path.exists()]:
                problems.append(f"{kilobytes} KB: left {left}")
            if folder.exists():
                intact_checkpoint(RunFolder(folder / "run_0"))
            print(f"{kilobytes} KB: {errors[0] if errors else said[-200:]}", flush=True)
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        if attempt(soak, disk, log) != 0:
            problems.append(f"{kilobytes} KB: {log.read_text(encoding='utf-8')[-600:]}")
        elif result_of(folder) != result_of(soak.folder(WORKS[0], "reference")):
            problems.append(f"{kilobytes} KB: another result after the resume")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    return problems


def main() -> None:
    """Fill the disk a number of times, and say what was wrong."""
    parser = argparse.ArgumentParser(description="Fill the disk at random moments of a training.")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, problems = random.Random(arguments.seed), []
    with tempfile.TemporaryDirectory(prefix="llmcls-disk-") as folder:
        disk, soak = Path(folder, "disk"), Soak(Path(folder, "soak"), arguments.seed)
        disk.mkdir()
        soak.reference(WORKS[0])
        used = (
            sum(path.stat().st_size for path in soak.folder(WORKS[0], "reference").rglob("*") if path.is_file()) // 1024
        )
        for _ in range(arguments.times):
            problems += fill(soak, disk, rng.randint(40, used), Path(folder, "log.txt"))
    print(f"filled {arguments.times} times, a run of {used} KB; {len(problems)} problems")
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
