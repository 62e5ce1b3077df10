"""What slurm/common.sh asks of srun, which a script replaces here; test_slurm.py has the real one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="shell scripts")


@pytest.mark.parametrize("processes, warned", [(2, False), (4, True)])
def test_the_processes_of_a_node_share_all_its_cores(tmp_path: Path, processes: int, warned: bool) -> None:
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\necho "srun $@"\nenv | grep CPUS_PER_TASK\nexit 0\n')
    srun.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}", "HEAD_NODE": "n1",
        "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_CPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "4",
        "SRUN_CPUS_PER_TASK": "1", "PROCESSES_PER_NODE": str(processes),
    }  # fmt: skip
    command = "source slurm/common.sh; launch accel_configs/ddp.yaml llmcls.train recipe.yaml"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert " --cpu-bind=none " in done.stdout
    assert "CPUS_PER_TASK=" not in done.stdout
    said = "warning: 4 processes share 4 cores; submit with --cpus-per-task=16" in done.stdout
    assert said == warned
