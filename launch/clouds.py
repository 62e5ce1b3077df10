"""Training on rented machines: a SkyPilot task, or a Kubeflow TrainJob, with the command of `launch/run.py train`.

Standard library only. The files are YAML of a plain kind: texts are quoted as in JSON, and scripts are blocks.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Where a job finds what must outlive its machines.
STORAGE = "/llmcls-storage"
# What YAML reads as other than text.
WORDS = ("yes", "off", "true", "false", "null")
# Seconds in which a pod that is evicted saves a checkpoint.
GRACE = 120


class CloudError(Exception):
    """A request that cannot work, in one sentence."""


@dataclass(frozen=True)
class Job:
    """A training on machines that are not there yet.

    Attributes
    ----------
    recipe : str
        Relative to the folder of the project.
    overrides : list of str
    profile : str
        A file, relative to the folder of the project.
    machines, gpus, processes : int
        Machines, GPUs of each, and processes of all.
    files : list of str
        Data files and folders of the recipe that are on this machine.
    storage : str
        A bucket ("s3://name", or the name of one), or the name of a volume claim.
    accelerator : str, optional
        What SkyPilot calls the GPU, such as "A100-80GB".
    image : str, optional
        The container image, for Kubernetes.
    token : bool
        Whether the job gets the variable HF_TOKEN.
    """

    recipe: str
    overrides: list[str]
    profile: str
    machines: int
    gpus: int
    processes: int
    files: list[str]
    storage: str
    accelerator: str | None = None
    image: str | None = None
    token: bool = False

    @property
    def name(self) -> str:
        """A name that both systems take: lower-case letters, digits and hyphens."""
        stem = re.sub(r"[^a-z0-9]+", "-", Path(self.recipe).stem.lower()).strip("-")
        return f"llmcls-{stem}"[:50].strip("-")


def launcher(job: Job, python: str, at: list[str]) -> str:
    """The line that starts the processes of a machine.

    Parameters
    ----------
    job : Job
    python : str
    at : list of str
        Options that say which machine this is, with shell variables. They are used if there are several machines.
    """
    words = [python, "-m", "accelerate.commands.launch", "--config_file", job.profile]
    line = " ".join([*words, *(at if job.machines > 1 else []), "--num_processes", str(job.processes)])
    own = [job.recipe, *job.overrides, f"exp.output_root={STORAGE}/outputs"]
    return f"{line} -m llmcls.train {shlex.join(own)}"


def sky_task(job: Job) -> dict[str, Any]:
    """A SkyPilot task. A managed job (`sky jobs launch`) that loses its machines runs it again, and training resumes.

    Raises
    ------
    CloudError
        If the machines have GPUs of no known kind.
    """
    if job.gpus and not job.accelerator:
        raise CloudError("--cloud: which GPU? add --accelerator with its name in `sky show-gpus`, such as A100-80GB")
    at = [
        "--num_machines", '"$SKYPILOT_NUM_NODES"', "--machine_rank", '"$SKYPILOT_NODE_RANK"',
        "--main_process_ip", '"$(echo "$SKYPILOT_NODE_IPS" | head -n 1)"', "--main_process_port", "29500",
    ]  # fmt: skip
    bucket = {"source": job.storage} if "://" in job.storage else {"name": job.storage}
    # A write-back cache: plain mounts of buckets have neither renaming nor appending.
    mounts: dict[str, Any] = {STORAGE: bucket | {"mode": "MOUNT_CACHED"}}
    # SkyPilot leaves out what git ignores, which data usually are.
    mounts |= {file if Path(file).is_absolute() else f"~/sky_workdir/{file}": file for file in job.files}
    resources: dict[str, Any] = {"accelerators": f"{job.accelerator}:{job.gpus}"} if job.gpus else {"cpus": "4+"}
    return {
        "name": job.name,
        "num_nodes": job.machines,
        "workdir": ".",
        "resources": resources | {"use_spot": True},
        "file_mounts": mounts,
        **({"secrets": {"HF_TOKEN": None}} if job.token else {}),
        "setup": "python3 launch/run.py setup\n",
        "run": launcher(job, ".venv/bin/python", at) + "\n",
    }


def sky_command(job: Job, file: str) -> list[str]:
    """The command that starts a task as a managed job."""
    return ["sky", "jobs", "launch", "--yes", *(["--secret", "HF_TOKEN"] if job.token else []), file]


def train_job(job: Job) -> dict[str, Any]:
    """A Kubeflow TrainJob for the runtime ``torch-distributed`` of Kubeflow Trainer 2.

    Raises
    ------
    CloudError
        If there is no image.
    """
    if not job.image:
        raise CloudError(
            "--kubernetes: which container? add --image with one that has this project and its packages; "
            "docs/cluster.md says how"
        )
    at = [
        "--num_machines", '"$PET_NNODES"', "--machine_rank", '"$PET_NODE_RANK"',
        "--main_process_ip", '"$PET_MASTER_ADDR"', "--main_process_port", '"$PET_MASTER_PORT"',
    ]  # fmt: skip
    limits = {"nvidia.com/gpu": job.gpus} if job.gpus else {"cpu": 4}
    secret = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf-token", "key": "token"}}}
    pod = {
        "terminationGracePeriodSeconds": GRACE,
        "volumes": [{"name": "storage", "persistentVolumeClaim": {"claimName": job.storage}}],
        "containers": [{"name": "node", "volumeMounts": [{"name": "storage", "mountPath": STORAGE}]}],
    }
    patched = {"replicatedJobs": [{"name": "node", "template": {"spec": {"template": {"spec": pod}}}}]}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": job.name},
        "spec": {
            "runtimeRef": {"name": "torch-distributed"},
            "trainer": {
                "image": job.image,
                "numNodes": job.machines,
                "numProcPerNode": max(1, job.processes // job.machines),
                "command": ["bash", "-c", _saving(launcher(job, "python", at))],
                "resourcesPerNode": {"limits": limits},
                **({"env": [secret]} if job.token else {}),
            },
            "runtimePatches": [
                {"manager": "llmcls.github.io/launch", "trainingRuntimeSpec": {"template": {"spec": patched}}}
            ],
        },
    }


def _saving(line: str) -> str:
    """A script for the first process of a container, which alone gets TERM when its pod is evicted.

    It passes the signal on as USR1, upon which a training saves and ends. The launchers ignore both: they would end the
    processes while they save.
    """
    return (
        'trap "" USR1\n'
        "export PET_SIGNALS_TO_HANDLE=SIGINT,SIGHUP,SIGQUIT\n"
        f"{line} &\n"
        "launcher=$!\n"
        # -1: every process of the container except this one.
        'trap "kill -s USR1 -1" TERM\n'
        "while kill -0 $launcher 2> /dev/null; do wait $launcher; done\n"
        "wait $launcher\n"
    )


def to_yaml(value: Any, indent: int = 0) -> str:
    """Plain values as YAML, each line with its end."""
    pad = " " * indent
    if isinstance(value, dict):
        return "".join(f"{pad}{_key(key)}:{_after(item, indent + 2)}" for key, item in value.items())
    assert isinstance(value, list), value
    # A dash stands in the place of the first two spaces of an item.
    items = [to_yaml(v, indent + 2) if _nested(v) else f"{pad}  {_scalar(v, indent + 2)}" for v in value]
    return "".join(f"{pad}- {item[indent + 2 :]}" for item in items)


def _nested(value: Any) -> bool:
    return isinstance(value, dict | list) and bool(value)


def _after(value: Any, indent: int) -> str:
    """What follows a key and its colon."""
    return "\n" + to_yaml(value, indent) if _nested(value) else " " + _scalar(value, indent)


def _key(key: str) -> str:
    # Short words can mean true or false in YAML.
    return key if re.fullmatch(r"[A-Za-z_][\w-]{2,}", key) and key.lower() not in WORDS else json.dumps(key)


def _scalar(value: Any, indent: int) -> str:
    if isinstance(value, str) and value.endswith("\n"):
        return "|\n" + "".join(f"{' ' * indent}{line}\n" for line in value.splitlines())
    return json.dumps(value, ensure_ascii=False) + "\n"
