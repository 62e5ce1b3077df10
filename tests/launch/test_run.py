from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmcls.model.memory import model_billions
from llmcls.recipe.load import load_recipe
from llmcls.results.run_folder import ExperimentFolder
from tests.helpers import ROOT, saves_on, until

pytestmark = pytest.mark.slow

LAUNCH = ROOT / "launch"


def launch(*arguments: Any, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    # -I: without site-packages and PYTHONPATH, as on a machine where nothing is installed yet.
    command = [sys.executable, "-I", str(LAUNCH / "run.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize(
    "gpus, machines, overrides, profile, processes",
    [
        ([], 1, ["train.batch_size=4"], "cpu", 1),
        pytest.param([80, 80], 2, ["model.lora_r=0"], "fsdp", 4, marks=pytest.mark.long),
    ],
)
def test_the_command_follows_from_the_hardware(tmp_path, gpus, machines, overrides, profile, processes) -> None:
    # What is chosen for which hardware: tests/test_profile.py.
    hardware = tmp_path / "hardware.json"
    hardware.write_text(json.dumps({"gpus": [{"memory_gib": g} for g in gpus], "machines": machines}))
    done = launch(
        "train", "recipes/quickstart.yaml", "--dry-run", "--hardware", hardware, "--model-size", "8B", *overrides
    )
    assert done.returncode == 0, done.stderr
    chosen, command = done.stdout.strip().splitlines()
    assert chosen.startswith(f"profile: {profile} (")
    assert f"--config_file accel_configs/{profile}.yaml --num_processes {processes}" in command
    assert command.startswith("$ accelerate launch ")
    assert command.endswith(" ".join(["-m llmcls.train recipes/quickstart.yaml", *overrides]))
    assert (f"--num_machines {machines} --machine_rank 0 --main_process_ip" in command) == (machines > 1)


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands in for sbatch")
def test_a_token_reaches_the_processes_by_the_environment_and_by_no_command_line(tmp_path: Path, monkeypatch) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.write_text('#!/bin/sh\necho "$HF_TOKEN" > "$0.token"; echo "$@" > "$0.arguments"\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    given = ["--slurm", "--gpus-per-node", 0, "model.hf_token='hf_secret'", "seeds=[1]"]
    done = launch("train", "recipes/quickstart.yaml", *given)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sbatch.token").read_text() == "hf_secret\n"
    assert (tmp_path / "sbatch.arguments").read_text().endswith("cpu.yaml model.hf_token=null seeds=[1]\n")
    assert "hf_secret" not in done.stdout + done.stderr


def test_the_size_is_read_from_the_name_of_a_model() -> None:
    names = ["meta-llama/Llama-3.2-1B", "HuggingFaceTB/SmolLM2-135M", "Qwen/Qwen3-0.6B", "gpt2"]
    assert [model_billions(name) for name in names] == [1.0, 0.135, 0.6, None]


def test_slurm_submits_the_job_script(write_recipe, tmp_path: Path) -> None:
    hardware, recipe = tmp_path / "hardware.json", write_recipe()
    hardware.write_text(json.dumps({"gpus": [{"memory_gib": 80}] * 4, "machines": 2}))
    done = launch("train", recipe, "--slurm", "--dry-run", "--hardware", hardware, "exp.seeds=[1]")
    assert done.stdout.splitlines()[-1] == (
        f"$ sbatch --nodes=2 --gpus-per-node=4 --cpus-per-task=16 slurm/train.sh {recipe} "
        "accel_configs/ddp.yaml 'exp.seeds=[1]'"
    )


@pytest.mark.parametrize(
    "described, command",
    [
        (["--gpus-per-node", 1, "--gpu-memory", 80],
         "--gpus-per-node=1 slurm/train.sh {} accel_configs/laptop_4bit.yaml"),
        (["--gpus-per-node", 2, "--profile", "zero2"],
         "--gpus-per-node=2 --cpus-per-task=8 slurm/train.sh {} accel_configs/zero2.yaml"),
        (["--gpus-per-node", 0], "slurm/train.sh {} accel_configs/cpu.yaml"),
    ],
)  # fmt: skip
def test_on_a_login_node_the_nodes_are_described(write_recipe, described: list[Any], command: str) -> None:
    recipe = write_recipe()
    done = launch("train", recipe, "--slurm", "--dry-run", *described)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"$ sbatch --nodes=1 {command.format(recipe)}"


@pytest.mark.parametrize(
    "given, sentence",
    [
        ([], "error: --slurm: this machine is not the one that trains, so say what a node has: --gpus-per-node 4"),
        (["--profile", "ddp"], "error: --slurm: this machine is not the one that trains"),
        (["--gpus-per-node", 4], "error: 4 GPUs of unknown memory: the profile depends on it; add --gpu-memory GIB"),
    ],
)
def test_the_hardware_of_a_login_node_decides_nothing(given: list[Any], sentence: str) -> None:
    # It has no GPU, and the profile would silently be cpu.
    done = launch("train", "recipes/quickstart.yaml", "--slurm", "--dry-run", *given)
    assert done.returncode == 2
    assert done.stderr.startswith(sentence)
    assert done.stdout == ""


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["train", "nowhere.yaml"], "nowhere.yaml: no such recipe file"),
        (["train", "recipes/quickstart.yaml", "--profile", "dpp"], "no profile 'dpp'; known are cpu, ddp,"),
        (["train", "recipes/quickstart.yaml", "--profil", "ddp", "--fast"], "--fast"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments: list[str], sentence: str) -> None:
    done = launch(*arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_mistake_in_the_recipe_comes_out_as_2_without_the_launchers_traceback(write_recipe) -> None:
    done = launch("train", write_recipe(data__text_fields=["titel"]))
    assert done.returncode == 2
    assert "did you mean 'title'?" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_training_works_from_a_folder_with_spaces_and_other_letters(write_recipe, tmp_path: Path) -> None:
    folder = tmp_path / "Größe und Maß"
    folder.mkdir()
    recipe = write_recipe(exp__output_root="Läufe", train__num_train_epochs=1)
    moved = folder / "mein rezept.yaml"
    recipe.rename(moved)
    done = launch("train", moved.name, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "Läufe" / "tiny-llama" / "products" / "summary.md").exists()


def test_the_wrappers_are_one_line_that_calls_python() -> None:
    assert (LAUNCH / "run.cmd").read_bytes() == b'@python "%~dp0run.py" %*\r\n'
    script = (LAUNCH / "run.sh").read_text(encoding="utf-8")
    assert script == '#!/bin/sh\nexec "${PYTHON:-python3}" "$(dirname "$0")/run.py" "$@"\n'
    # Python of the tests: another one would first set up an environment.
    environment = os.environ | {"PYTHON": sys.executable}
    command = ["sh", LAUNCH / "run.sh", "train", "none.yaml"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2


@pytest.fixture
def run_module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """launch/run.py as a module; the commands that it would start are in its list ``started``."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location("llmcls_launch_run", LAUNCH / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    started: list[list[str]] = []
    monkeypatch.setattr(module, "execute", lambda command: started.append(command[1:]) or 0)
    module.started = started
    return module


@pytest.mark.parametrize("failing", [None, "pytest", "mypy", "mkdocs"])
def test_the_tests_run_beside_the_other_checks_and_the_worst_exit_code_counts(
    run_module, monkeypatch: pytest.MonkeyPatch, capsys, failing: str | None
) -> None:
    def checked(command: list[str]) -> tuple[int, str]:
        return int(command[2] == failing), f"{command[2]} {command[3] if len(command) > 3 else ''}\n"

    monkeypatch.setattr(run_module, "checked", checked)
    monkeypatch.setattr(run_module, "execute", lambda command: 2 * int(command[2] == failing))
    assert run_module.run_tests([]) == (0 if failing is None else 2 if failing == "pytest" else 1)
    assert capsys.readouterr().out == "ruff check\nruff format\nmypy \nmkdocs build\n"


def test_a_check_in_the_background_keeps_its_output_and_its_exit_code(run_module) -> None:
    code, said = run_module.checked([sys.executable, "-c", "import sys; print('é'); sys.exit('wrong')"])
    assert (code, said.splitlines()) == (1, ["é", "wrong"])


@pytest.mark.parametrize(
    "model, recipe, data, results",
    [
        ("smollm2-135m", "quickstart", "demo/data", "outputs/smollm2-135m/messages"),
        ("tiny-llama", "quickstart_tiny", "demo/products", "outputs/tiny-llama/products"),
    ],
)
def test_the_demo_trains_the_recipe_of_the_model_that_the_quickstart_got(
    run_module,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys,
    model: str,
    recipe: str,
    data: str,
    results: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo" / model).mkdir(parents=True)
    assert run_module.demo() == 0
    first, train, predict = run_module.started
    assert first == ["-m", "llmcls.quickstart", "--out", "demo"]
    assert train == ["-m", "llmcls", "train", f"recipes/{recipe}.yaml"]
    assert predict[2:6] == ["--recipe", f"recipes/{recipe}.yaml", "--input", f"{data}/test.csv"]
    said = capsys.readouterr().out
    assert f"{results}/summary.md" in said
    values = load_recipe(ROOT / "recipes" / f"{recipe}.yaml")
    assert values.data.train_csv == f"{data}/train.csv"
    assert ExperimentFolder.of(values).path == Path(results)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends Ctrl-C to a console")
def test_after_ctrl_c_the_command_has_time_to_save(tmp_path: Path) -> None:
    saves = saves_on("SIGINT", 130, seconds=0.6)
    starts = (
        f"import sys; sys.path.insert(0, {str(LAUNCH)!r}); import run\n"
        f"sys.exit(run.execute([sys.executable, '-c', {saves!r}]))"
    )
    process = subprocess.Popen([sys.executable, "-c", starts], cwd=tmp_path, start_new_session=True)
    until((tmp_path / "started").exists, process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    assert (tmp_path / "saved").exists()
