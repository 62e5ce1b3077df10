"""A real Slurm of two nodes on this host: its daemons, started in a folder and stopped again."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "srun", "scancel", "squeue")

CONFIGURATION = """
ClusterName=t
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/sock
CredType=cred/munge
StateSaveLocation={folder}/ctld
SlurmdSpoolDir={folder}/d.%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/d.%n.pid
SlurmctldLogFile={folder}/log/ctld.log
SlurmdLogFile={folder}/log/d.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=3
MessageTimeout=60
FirstJobId={first_job}
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_1} CPUs=4 RealMemory=4000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_2} CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def missing_programs() -> list[str]:
    """What of Slurm is not installed here."""
    path = os.environ["PATH"] + os.pathsep + "/usr/sbin"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


class Cluster:
    """Running daemons. ``environment``: what a client needs to find them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("munge", "ctld", "log"):
            (folder / name).mkdir(mode=0o755)
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        }  # fmt: skip
        host = socket.gethostname()
        ports = _free_ports(3)
        import getpass

        text = CONFIGURATION.format(
            folder=folder, host=host, user=getpass.getuser(), port=ports[0], port_1=ports[1], port_2=ports[2],
            # Jobs of two clusters on one host begin to look for a free port at different numbers.
            first_job=random.randrange(1, 10000),
        )  # fmt: skip
        (folder / "slurm.conf").write_text(text)
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        key = folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        munge = [f"--{name}={folder}/munge/{name}" for name in ("pid-file", "log-file", "seed-file")]
        self._call(["munged", "--force", f"--socket={folder}/munge/sock", f"--key-file={key}", *munge])
        self._call(["slurmctld", "-f", str(folder / "slurm.conf")])
        for node in ("n1", "n2"):
            self._call(["slurmd", "-f", str(folder / "slurm.conf"), "-N", node])
        self.wait_for(lambda: self._call(["sinfo", "-h", "-o", "%T %D"]).strip() == "idle 2", "two idle nodes", 30)

    def stop(self) -> None:
        """End jobs and daemons."""
        subprocess.run(["scancel", "-f", "-u", str(os.getuid())], env=self.environment, capture_output=True)
        time.sleep(1)
        for file in (*self.folder.glob("*.pid"), self.folder / "munge" / "pid-file"):
            if file.exists():
                try:
                    os.kill(int(file.read_text()), signal.SIGTERM)
                except ProcessLookupError:
                    continue

    def submit(self, cwd: Path, *arguments: str, **variables: str) -> str:
        """``sbatch --parsable ARGUMENTS`` in ``cwd``; returns the job's number."""
        done = subprocess.run(
            ["sbatch", "--parsable", *arguments], cwd=cwd, env=self.environment | variables, capture_output=True,
            text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What ``scontrol show job`` says of a job (of an array, of its first task)."""
        first = self._call(["scontrol", "show", "job", "-o", number]).splitlines()[0]
        return dict(pair.partition("=")[::2] for pair in first.split() if "=" in pair)

    def jobs(self) -> str:
        """What ``scontrol show job`` says of all jobs."""
        return self._call(["scontrol", "show", "job", "-o"])

    def logs(self) -> list[Path]:
        """What the daemons wrote."""
        return sorted((self.folder / "log").iterdir())

    def finish(self, number: str, seconds: float = 480) -> str:
        """Wait for the end of a job; returns its last state."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")

        self.wait_for(lambda: self.job(number)["JobState"] in ended, f"job {number} to end", seconds)
        return self.job(number)["JobState"]

    def wait_for(self, condition, what: str, seconds: float) -> None:
        """Ask until it is so."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited {seconds} s for {what}\n{self._call(['squeue', '-l'])}"
            time.sleep(0.5)

    def restart(self, number: str, seconds: float = 120) -> None:
        """Wait until a job is back in the queue, and start it without the two minutes that Slurm lets it wait there.

        A shorter life of the credentials would also do, but then a job fails if a daemon gets no processor for that
        long: "Job credential expired".
        """
        self.wait_for(lambda: self.job(number)["JobState"] == "PENDING", f"job {number} to be requeued", seconds)
        # A node refuses credentials of the second in which the earlier start was ended: "Job credential revoked".
        time.sleep(3)
        self._call(["scontrol", "update", f"JobId={number}", "StartTime=now"])

    def release(self, number: str) -> None:
        """Let a job start that was submitted with ``--hold``."""
        self._call(["scontrol", "release", number])

    def signal_batch(self, number: str, name: str) -> None:
        """Send a signal to the job's script alone, as Slurm does before a time limit."""
        self._call(["scancel", "--batch", f"--signal={name}", number])

    def signal_step(self, number: str, name: str) -> None:
        """Send a signal to all processes of the job but its script."""
        self._call(["scancel", f"--signal={name}", number])

    def _call(self, command: list[str]) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports
