"""The files for rented machines: by our own rules, and by the parsers of SkyPilot and Kubeflow where they are.

``LLMCLS_CLOUD_PYTHON`` is the interpreter of an environment with skypilot and kubeflow, which need other versions of
some packages than this project.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.helpers import ROOT

CLOUD_PYTHON = os.environ.get("LLMCLS_CLOUD_PYTHON", sys.executable)

PARSERS = {
    "sky": """
import sys, sky
task = sky.Task.from_yaml(sys.argv[1])
(found,) = task.resources
assert (task.num_nodes, found.use_spot, found.accelerators) == (2, True, {"A100-80GB": 4}), task
assert list(task.storage_mounts) == ["/llmcls-storage"], task.storage_mounts
assert "-m llmcls.train recipes/amazon.yaml" in task.run
""",
    "kubeflow_trainer_api": """
import sys, yaml
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob
given = yaml.safe_load(open(sys.argv[1]))
def without_none(v):
    if isinstance(v, dict):
        return {k: without_none(x) for k, x in v.items() if x is not None}
    return [without_none(x) for x in v] if isinstance(v, list) else v
# The parser leaves out what it does not know.
assert without_none(TrainerV1alpha1TrainJob.from_dict(given).to_dict()) == given
""",
}


@pytest.fixture(scope="module")
def clouds() -> ModuleType:
    spec = importlib.util.spec_from_file_location("clouds", ROOT / "launch" / "clouds.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["clouds"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def job(clouds: ModuleType) -> Any:
    return clouds.Job(
        "recipes/amazon.yaml", ["exp.seeds=[1]"], "accel_configs/ddp.yaml", 2, 4, 8, ["data/train.csv", "/models/base"],
        "my-bucket", "A100-80GB", "registry/llmcls:1", True,
    )  # fmt: skip


def test_a_sky_task_trains_on_all_machines_and_keeps_the_results(clouds: ModuleType, job: Any) -> None:
    task = clouds.sky_task(job)
    assert (task["num_nodes"], task["resources"]["accelerators"]) == (2, "A100-80GB:4")
    assert task["file_mounts"]["/llmcls-storage"] == {"name": "my-bucket", "mode": "MOUNT_CACHED"}
    assert task["file_mounts"]["~/sky_workdir/data/train.csv"] == "data/train.csv"
    assert task["file_mounts"]["/models/base"] == "/models/base"
    assert '--machine_rank "$SKYPILOT_NODE_RANK"' in task["run"]
    assert task["run"].endswith(
        "--num_processes 8 -m llmcls.train recipes/amazon.yaml 'exp.seeds=[1]' "
        "exp.output_root=/llmcls-storage/outputs\n"
    )
    assert clouds.sky_command(job, "x.yaml") == ["sky", "jobs", "launch", "--yes", "--secret", "HF_TOKEN", "x.yaml"]
    one = clouds.sky_task(replace(job, machines=1, storage="s3://results", token=False))
    assert "--machine_rank" not in one["run"]
    assert one["file_mounts"]["/llmcls-storage"]["source"] == "s3://results"
    assert "secrets" not in one


def test_a_train_job_has_one_launcher_per_pod_and_time_to_save(clouds: ModuleType, job: Any) -> None:
    spec = clouds.train_job(job)["spec"]
    trainer = spec["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"], trainer["image"]) == (2, 4, "registry/llmcls:1")
    assert trainer["resourcesPerNode"] == {"limits": {"nvidia.com/gpu": 4}}
    assert '--machine_rank "$PET_NODE_RANK"' in trainer["command"][2]
    (patch,) = spec["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 120
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "my-bucket"}
    assert pod["containers"][0]["volumeMounts"] == [{"name": "storage", "mountPath": "/llmcls-storage"}]


def test_what_is_written_is_read_back_the_same(clouds: ModuleType, job: Any) -> None:
    odd = {"a: b": ["x", {"y": "#1", "z": []}, [1, ["ä"]], {}], "on": "yes", "n": None, "script": "a\n\n  b: 'c'\n"}
    for value in (odd, clouds.sky_task(job), clouds.train_job(job)):
        assert yaml.safe_load(clouds.to_yaml(value)) == value


@pytest.mark.parametrize("package", PARSERS)
def test_the_tools_themselves_take_the_files(package: str, clouds: ModuleType, job: Any, tmp_path: Path) -> None:
    if subprocess.run([CLOUD_PYTHON, "-c", f"import {package}"], capture_output=True).returncode:
        pytest.skip(f"{package} is not installed; set LLMCLS_CLOUD_PYTHON to the Python of an environment that has it")
    file = tmp_path / "job.yaml"
    content = clouds.sky_task(replace(job, files=[], token=False)) if package == "sky" else clouds.train_job(job)
    file.write_text(clouds.to_yaml(content), encoding="utf-8")
    done = subprocess.run([CLOUD_PYTHON, "-c", PARSERS[package], str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


STAND_IN = """
import signal, subprocess, sys, time
# As the launcher does, in a session of its own; the signals that its shell ignores, it ignores too.
worker = ("import signal, sys, time; signal.signal(signal.SIGUSR1, lambda *_: (print('saved'), sys.exit(75)));"
          "print('ready', flush=True); time.sleep(60)")
sys.exit(subprocess.Popen([sys.executable, "-c", worker], start_new_session=True).wait())
"""


@pytest.mark.skipif(os.name == "nt", reason="containers run Linux")
def test_an_evicted_pod_saves_before_it_ends(clouds: ModuleType, tmp_path: Path) -> None:
    own = ["unshare", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*own, "true"], capture_output=True).returncode:
        pytest.skip("this user may not make a process namespace, which stands for a container")
    (tmp_path / "launcher.py").write_text(STAND_IN, encoding="utf-8")
    script = clouds._saving(f"{sys.executable} {tmp_path / 'launcher.py'}")
    # Within the namespace a shell of its own sends TERM to process 1, as the kubelet does.
    evict = f"(sleep 1.5; kill -s TERM 1) & {script}"
    start = time.monotonic()
    done = subprocess.run([*own, "bash", "-c", evict], capture_output=True, text=True, timeout=50)
    assert "saved" in done.stdout, done.stderr
    assert done.returncode == 75
    assert time.monotonic() - start < 40


@pytest.fixture
def run_py(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """launch/run.py; the profile is chosen beforehand, which is tested in tests/test_profile.py."""
    spec = importlib.util.spec_from_file_location("run_under_test", ROOT / "launch" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    chosen = {"file": str(ROOT / "accel_configs" / "ddp.yaml"), "processes": 8, "gpus": 4, "machines": 2, "files": []}
    monkeypatch.setattr(module, "choose", lambda _: chosen)
    monkeypatch.setattr(module, "installed", lambda: True)
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return module


NODE = ["train", "recipes/quickstart.yaml", "--gpus-per-node", "4", "--gpu-memory", "80", "--machines", "2"]


@pytest.mark.parametrize(
    ("given", "command"),
    [
        (["--cloud", "--storage", "my-bucket", "--accelerator", "A100-80GB"], "sky jobs launch --yes"),
        (["--kubernetes", "--storage", "claim", "--image", "registry/llmcls:1"], "kubectl apply --filename"),
    ],
)
def test_the_file_is_written_and_the_command_printed(
    given: list[str], command: str, run_py: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    file = tmp_path / "job.yaml"
    assert run_py.main([*NODE, *given, "--dry-run", "--out", str(file), "exp.seeds=[1]"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"wrote {file}", f"$ {command} {file}"]
    text = file.read_text(encoding="utf-8")
    assert "accel_configs/ddp.yaml --num_machines" in text
    assert "--num_processes 8 -m llmcls.train recipes/quickstart.yaml 'exp.seeds=[1]'" in text
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_py.main([*NODE, *given, "--out", str(file)]) == 2
    assert "is not installed; install it, or start" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["train", "recipes/quickstart.yaml", "--cloud"], "--cloud: this machine is not the one that trains"),
        ([*NODE, "--cloud"], "--cloud: the machines do not stay, so say where results do: --storage with a bucket"),
        ([*NODE, "--cloud", "--storage", "x"], "--cloud: which GPU? add --accelerator"),
        ([*NODE, "--kubernetes", "--storage", "x"], "--kubernetes: which container? add --image"),
        (
            ["train", "/tmp/r.yaml", *NODE[2:], "--cloud", "--storage", "x"],
            "--cloud takes this project along: start it",
        ),
    ],
)
def test_what_is_missing_is_asked_for(
    given: list[str], sentence: str, run_py: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_py.main([*given, "--dry-run"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {sentence}")
