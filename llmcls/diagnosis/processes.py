"""Checks of work in several processes: an exchange between all GPUs of this machine, and Slurm."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from llmcls.diagnosis.findings import Finding, Subject, fault, ok, skipped, warning

# How long the processes may take to start and to exchange.
SECONDS = 120
PACKAGE_ROOT = Path(__file__).resolve().parents[2]


def all_reduce(subject: Subject) -> Finding:
    """Whether processes on all GPUs, or two CPU processes, can add up their numbers, as they do with gradients."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    nccl = gpus > 0 and torch.distributed.is_nccl_available()
    backend, count = ("nccl", gpus) if nccl else ("gloo", 2)
    where = f"{gpus} GPU(s)" if nccl else "2 CPU processes"
    error, rate = exchange(backend, count)
    if error is not None:
        advice = "NCCL_DEBUG=INFO shows why; try NCCL_P2P_DISABLE=1 or NCCL_IB_DISABLE=1, and check the driver"
        if not nccl:
            advice = "check that this machine's name resolves (ping `hostname`), and set GLOO_SOCKET_IFNAME=lo"
        return fault(f"an all-reduce over {backend} with {where} failed: {error}", advice)
    if nccl and gpus == 1:
        return ok("NCCL starts on the GPU; there is no other one to exchange with", backend=backend, processes=1)
    found = f"all-reduce over {backend} with {where} works ({rate:.1f} GB/s)"
    if gpus > 1 and not nccl:
        return warning(found, "this build of torch has no NCCL, which several GPUs need: use Linux", gb_per_second=rate)
    return ok(found, backend=backend, processes=count, gb_per_second=rate)


def exchange(backend: str, count: int) -> tuple[str | None, float]:
    """Run `llmcls.diagnosis.reduce_worker` in several processes.

    Parameters
    ----------
    backend : str
        "nccl" or "gloo".
    count : int
        Number of processes.

    Returns
    -------
    error : str or None
    rate : float
        GB per second that each process exchanged.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = [str(PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "llmcls.diagnosis.reduce_worker", backend, str(rank), str(count), str(port)],
                env=environment, stdout=output, stderr=subprocess.STDOUT,
            )
            for rank in range(count)
        ]  # fmt: skip
        try:
            codes = [rank.wait(timeout=SECONDS) for rank in ranks]
        except subprocess.TimeoutExpired:
            return f"it did not end within {SECONDS} s", 0.0
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
        output.seek(0)
        lines = [line.strip() for line in output if line.strip()]
    if any(codes):
        return (lines or [f"exit codes {codes}"])[-1][:200], 0.0
    return None, float(next(json.loads(line) for line in lines if line.startswith("{"))["gb_per_second"])


def slurm(subject: Subject) -> Finding:
    """Whether this machine can submit jobs, and to which partitions."""
    command = shutil.which("sinfo")
    if command is None:
        return skipped("no Slurm (sinfo was not found)")
    try:
        done = subprocess.run(
            [command, "--noheader", "--format=%P|%D|%G|%a"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return warning(f"sinfo does not answer ({type(error).__name__})", "ask the administrator of the cluster")
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0]
        return warning(
            f"Slurm is installed, but no cluster answers: {said[:160]}",
            "nothing, if this machine belongs to no cluster; else ask its administrator",
        )
    partitions = [row.strip().split("|") for row in done.stdout.splitlines() if row.count("|") == 3]
    shown = [f"{name.rstrip('*')} ({nodes} nodes, {gres})" for name, nodes, gres, state in partitions if state == "up"]
    if not shown:
        return warning("Slurm has no partition that is up", "ask the administrator of the cluster")
    gpus = any("gpu" in gres.lower() for _, _, gres, _ in partitions)
    found = f"partitions: {', '.join(shown[:6])}" + ("" if gpus else "; none has GPUs")
    return ok(found, partitions=partitions)
