"""The job scripts on a real Slurm: two nodes on this host, jobs on its processors."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.helpers import ROOT, read_rows
from tests.slurm.cluster import Cluster, missing_programs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.skipif(bool(missing_programs()), reason=f"Slurm is not here: {', '.join(missing_programs())}"),
]
CPU = "accel_configs/cpu.yaml"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    # A socket's path may have a hundred letters only, so not in pytest's deep folders.
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    running = Cluster(folder)
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{running.environment['PATH']}", "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1", "HEAD_NODE": "127.0.0.1", "PROCESSES_PER_NODE": "1",
    }  # fmt: skip
    running.environment |= environment
    yield running
    running.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def project(cluster: Cluster, tmp_path: Path) -> Iterator[Path]:
    """Where jobs are submitted: the project's scripts and profiles, and room for what the jobs write."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("slurm", "accel_configs"):
        (folder / name).symlink_to(ROOT / name)
    yield folder
    # pytest shows what is printed here if the test failed.
    for file in (*sorted(folder.rglob("slurm-*.out")), *sorted(folder.rglob("slurm-*.log")), *cluster.logs()):
        print(f"--- {file}\n{file.read_text()}")
    print(cluster.jobs())


def log_of(run: Path) -> str:
    return "\n".join(p.read_text() for p in run.glob("slurm-*.log"))


def metrics(run: Path) -> dict:
    found = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    del found["training"]
    return found


def test_a_sweep_fills_a_folder_for_each_run_and_writes_the_table(cluster, project, write_recipe) -> None:
    recipe = write_recipe(train__num_train_epochs=1, exp__output_root="outputs")
    grid = {
        "recipe": str(recipe), "profile": CPU, "seeds": [2], "at_once": 2,
        "grid": {"train.learning_rate": [1e-3, 1e-2]}, "sbatch": ["--cpus-per-task=2"],
    }  # fmt: skip
    (project / "grid.yaml").write_text(yaml.safe_dump(grid))
    job = cluster.submit(project, "slurm/sweep.sh", "grid.yaml")
    assert cluster.finish(job) == "COMPLETED"
    words = (project / f"slurm-llmcls-sweep-{job}.out").read_text().split()
    assert words[:5] == ["sweep", "of", "2", "runs:", "array"]
    assert cluster.finish(words[-1]) == "COMPLETED"
    root = project / "outputs" / "tiny-llama" / "products"
    names = [f"learning_rate-{rate}_seed-2" for rate in (0.001, 0.01)]
    assert sorted(p.name for p in root.iterdir()) == names
    seen = {name: metrics(root / name / "run_0") for name in names}
    assert [seen[name]["seed"] for name in names] == [2, 2]
    assert all("seed " in log_of(root / name) for name in names)
    table = json.loads((project / "outputs" / "sweep-grid.json").read_text())
    by_rate = {entry["values"]["train.learning_rate"]: entry for entry in table["combinations"]}
    for rate in (0.001, 0.01):
        assert by_rate[rate]["missing"] == []
        assert by_rate[rate]["test"] == [seen[f"learning_rate-{rate}_seed-2"]["test"]["f1_micro"]]
    assert "| learning_rate | seeds | validation | test |" in (project / "outputs" / "sweep-grid.md").read_text()


def test_two_nodes_train_as_two_processes_and_predict(cluster, project, write_recipe, products: Path) -> None:
    recipe = write_recipe(train__num_train_epochs=1, exp__output_root="outputs")
    job = cluster.submit(project, "--hold", "--nodes=2", "slurm/train.sh", str(recipe), CPU, "exp.run_name=two")
    # Another program has the port that this job would take first.
    with socket.create_server(("127.0.0.1", 20000 + int(job) % 10000)):
        cluster.release(job)
        assert cluster.finish(job) == "COMPLETED"
    root = project / "outputs" / "tiny-llama" / "products" / "two"
    environment = json.loads((root / "run_0" / "environment.json").read_text())
    assert environment["processes"] == 2
    assert environment["engine"] == "multi_cpu"
    assert "nodes n[1-2]" in log_of(root)

    arguments = [str(root / "run_0"), str(products / "test.csv"), "predictions.jsonl", CPU]
    assert cluster.finish(cluster.submit(project, "--nodes=2", "slurm/predict.sh", *arguments)) == "COMPLETED"
    ids = [json.loads(line)["id"] for line in (project / "predictions.jsonl").open(encoding="utf-8")]
    assert ids == [row["uid"] for row in read_rows(products / "test.csv")]


def test_a_job_told_to_stop_requeues_itself_and_ends_with_the_same_metrics(cluster, project, write_recipe) -> None:
    recipe = write_recipe(train__num_train_epochs=6, train__logging_steps=1, exp__output_root="outputs")
    root = project / "outputs" / "tiny-llama" / "products"
    job = cluster.submit(project, "slurm/train.sh", str(recipe), CPU, "exp.run_name=cut")
    log = root / "cut" / "run_0" / "metrics.jsonl"
    cluster.wait_for(lambda: log.exists() and log.read_text().count('"train"') >= 12, "the twelfth step", 120)
    cluster.signal_batch(job, "USR1")
    cluster.restart(job)
    assert cluster.finish(job) == "COMPLETED"
    assert cluster.job(job)["Restarts"] == "1"
    words = log_of(root / "cut")
    assert f"job {job} goes back into the queue" in words
    assert "resuming after step" in words

    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", CPU, "-m", "llmcls.train"]
    done = subprocess.run(
        [*command, str(recipe), "exp.run_name=whole"], cwd=project, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert metrics(root / "cut" / "run_0") == metrics(root / "whole" / "run_0")


@pytest.mark.parametrize("profile", ["cpu", "laptop_4bit"], ids=["torch's launcher", "accelerate's launcher"])
def test_a_job_that_is_cancelled_or_preempted_may_save_first(cluster, project, profile: str) -> None:
    (project / "job.sh").write_text(
        "#!/bin/bash\n#SBATCH --ntasks-per-node=1\nsource slurm/common.sh\n"
        f"launch_and_requeue USR1 accel_configs/{profile}.yaml tests.slurm.slow_save .\n"
    )
    job = cluster.submit(project, "job.sh")
    cluster.wait_for((project / "ready").exists, "the process to be ready", 240)
    # To every process of the step, as Slurm does before it kills them.
    cluster.signal_step(job, "TERM")
    cluster.finish(job)
    assert (project / "saved").exists()
    said = (project / f"slurm-{job}.out").read_text()
    assert "closing signal" not in said, "the launcher of torch kills processes 30 seconds after it closes them"


def test_a_mistake_in_the_recipe_fails_the_job_and_is_said(cluster, project, write_recipe) -> None:
    recipe = write_recipe()
    job = cluster.submit(project, "slurm/train.sh", str(recipe), CPU, "train.batchsize=4")
    assert cluster.finish(job) == "FAILED"
    assert cluster.job(job)["ExitCode"] == "2:0"
    said = (project / f"slurm-llmcls-train-{job}.out").read_text()
    assert "error: command line: train.batchsize" in said
    assert "Traceback" not in said


@pytest.mark.long
def test_an_array_shares_a_search_also_when_a_task_is_told_to_stop(cluster, project, write_recipe) -> None:
    pytest.importorskip("optuna", reason="Optuna is not installed")
    recipe = write_recipe(train__num_train_epochs=1, train__train_metrics_rows=0, exp__output_root="outputs")
    (project / "space.yaml").write_text("train.learning_rate: {low: 1.0e-3, high: 1.0e-2, log: true}\n")
    arguments = [str(recipe), "space.yaml", "5", CPU]
    job = cluster.submit(project, "--array=0-1", "--cpus-per-task=2", "slurm/tune.sh", *arguments)
    root = project / "outputs" / "tiny-llama" / "products"
    cluster.wait_for(lambda: len(list(root.glob("tune-*/run_0/log.txt"))) >= 2, "two trials", 240)
    cluster.signal_batch(f"{job}_1", "USR1")
    cluster.restart(f"{job}_1", 240)
    assert cluster.finish(f"{job}_0") == cluster.finish(f"{job}_1") == "COMPLETED"
    assert cluster.job(f"{job}_1")["Restarts"] == "1"
    found = json.loads((root / "tune.json").read_text())
    assert len(found["trials"]) == 5
    assert {trial["state"] for trial in found["trials"]} <= {"complete", "pruned"}
    best = yaml.safe_load((root / "tune-best.yaml").read_text())
    assert 1e-3 <= best["train"]["learning_rate"] <= 1e-2
