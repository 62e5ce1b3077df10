from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from llmcls.common.command import run_command
from llmcls.recipe.load import load_recipe
from llmcls.results.run_folder import PROGRESS, ExperimentFolder
from llmcls.train import main as train_main
from llmcls.training import launcher
from llmcls.training.launcher import main, saved_words
from tests.helpers import run_module


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the launcher of accelerate was called with; it raises "error" if there is one."""
    import accelerate.commands.launch as real

    seen: dict[str, Any] = {}

    def launch_command(arguments: Any) -> None:
        seen["arguments"] = arguments
        if "error" in seen:
            raise seen["error"]

    monkeypatch.setattr(real, "launch_command", launch_command)
    return seen


def ended(argv: list[str]) -> int:
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: main(argv))
    return int(stop.value.code or 0)


def test_the_profile_of_this_machine_is_chosen_and_the_command_is_shown(write_recipe, launched, capsys) -> None:
    recipe = write_recipe()
    assert ended([str(recipe), "--gpus", "0", "train.batch_size=4"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("profile: cpu (")
    assert said[1].endswith(f"cpu.yaml --num_processes 1 -m llmcls.train {recipe} train.batch_size=4")
    arguments = launched["arguments"]
    assert (arguments.training_script, arguments.module) == ("llmcls.train", True)
    assert arguments.training_script_args == [str(recipe), "train.batch_size=4"]


def test_the_module_starts_processes_only_if_it_is_asked_to(write_recipe, launched, capsys) -> None:
    with pytest.raises(SystemExit):
        train_main([str(write_recipe()), "--profile", "cpu", "--processes", "2"])
    assert "--num_processes 2" in capsys.readouterr().out
    assert launched["arguments"].num_processes == 2


def test_several_machines_need_the_address_of_the_first(write_recipe, launched, capsys) -> None:
    given = [str(write_recipe()), "--profile", "ddp", "--gpus", "4", "--machines", "2"]
    assert ended(given) == 2
    assert "error: several machines need --main-ip" in capsys.readouterr().err
    assert "arguments" not in launched
    assert ended([*given, "--main-ip", "10.0.0.1"]) == 0
    assert (launched["arguments"].main_process_ip, launched["arguments"].main_process_port) == ("10.0.0.1", 29500)


@pytest.mark.parametrize("code, expected", [(2, 2), (85, 85), (1, 1)])
def test_the_exit_code_of_the_training_comes_out_and_the_launcher_says_nothing(
    write_recipe, launched, capsys, code: int, expected: int
) -> None:
    launched["error"] = failure(code)
    assert ended([str(write_recipe()), "--gpus", "0"]) == expected
    assert capsys.readouterr().err == ""


def test_a_process_that_was_killed_is_one_sentence(write_recipe, launched, capsys) -> None:
    launched["error"] = failure(-9)
    assert ended([str(write_recipe()), "--gpus", "0"]) == 2
    assert capsys.readouterr().err.startswith("error: a process of the training was killed by signal 9; often ")


def test_after_ctrl_c_the_last_line_says_what_is_saved(write_recipe, launched, capsys) -> None:
    from torch.distributed.elastic.multiprocessing import SignalException

    recipe = write_recipe(exp__seeds=[3, 4])
    launched["error"] = SignalException("stopped", signal.SIGINT)
    assert ended([str(recipe), "--gpus", "0"]) == 130
    said = capsys.readouterr().err
    assert said == "nothing was saved of seed 3; the same command starts it again\n"
    experiment = ExperimentFolder.of(load_recipe(recipe))
    for number in range(2):
        experiment.run(number).last_checkpoint.mkdir(parents=True)
    experiment.run(0).metrics.write_text("{}")
    (experiment.run(1).last_checkpoint / PROGRESS).write_text(json.dumps({"step": 12}))
    words = saved_words(load_recipe(recipe))
    assert words == f"saved: seed 4 after step 12 ({experiment.run(1).path}); run the same command again to resume"
    experiment.run(1).metrics.write_text("{}")
    assert saved_words(load_recipe(recipe)).startswith("all seeds are trained")


def test_inside_a_launcher_the_command_trains(write_recipe, launched, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Any] = []
    monkeypatch.setattr(launcher.importlib, "import_module", lambda name: type("Module", (), {"main": trained.append}))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    main([str(write_recipe())])
    assert len(trained) == 1
    assert launched == {}


@pytest.mark.slow
def test_the_sentence_is_the_last_line_also_if_a_process_of_the_training_finds_the_mistake(write_recipe) -> None:
    done = run_module("llmcls", "train", write_recipe(data__text_fields=["titel"]))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "did you mean 'title'?" in done.stderr.splitlines()[-1]
    assert "ChildFailedError" not in done.stderr
    assert "Traceback" not in done.stderr


def failure(code: int) -> Exception:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    return ChildFailedError("llmcls.train", {0: ProcessFailure(0, os.getpid(), code, str(Path("none")))})
