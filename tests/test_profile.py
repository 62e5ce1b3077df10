from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmcls.common.user_error import UserError
from llmcls.profile import main
from tests.helpers import ROOT, refusal


def chosen(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    main([*map(str, arguments), "--json"])
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def hardware(tmp_path: Path):
    def write(*gib: float, machines: int = 1) -> Path:
        path = tmp_path / "hardware.json"
        path.write_text(json.dumps({"gpus": [{"memory_gib": g} for g in gib], "machines": machines}))
        return path

    return write


def test_the_profile_follows_from_hardware_and_size(write_recipe, hardware, capsys) -> None:
    recipe = write_recipe()
    assert chosen(capsys, recipe, "--hardware", hardware())["profile"] == "cpu"
    one = chosen(capsys, recipe, "--hardware", hardware(24), "--model-size", "1B")
    assert (one["processes"], one["gpus"]) == (1, 1)
    two = chosen(capsys, recipe, "--hardware", hardware(80, 80), "--model-size", "1B")
    assert (two["profile"], two["processes"]) == ("ddp", 2)
    assert two["reason"]
    large = chosen(capsys, recipe, "use_4bit=true", "--hardware", hardware(24, 24), "--model-size", "70B")
    assert large["profile"] == "fsdp_qlora"


def test_a_given_profile_only_gets_its_number_of_processes(write_recipe, hardware, capsys, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    arguments = [write_recipe(), "--profile", "zero2", "--hardware", hardware(80, 80), "--machines", "2"]
    found = chosen(capsys, *arguments)
    assert found["file"] == "accel_configs/zero2.yaml"
    assert (found["profile"], found["processes"], found["machines"], found["reason"]) == ("zero2", 4, 2, None)


def test_for_people_it_is_one_line(write_recipe, hardware, capsys) -> None:
    main([str(write_recipe()), "--hardware", str(hardware())])
    assert capsys.readouterr().out.startswith("profile: cpu, 1 process(es) (")


def test_an_unknown_profile_is_refused(write_recipe) -> None:
    with pytest.raises(UserError, match="no profile 'ddpp'; known are cpu, ddp"):
        main([str(write_recipe()), "--profile", "ddpp"])


@pytest.mark.parametrize("text", ["", "[]", '{"gpus": 3}', '{"gpus": [{}]}', "\x00"])
def test_hardware_that_cannot_be_read_is_one_sentence(write_recipe, tmp_path: Path, capsys, text: str) -> None:
    path = tmp_path / "hardware.json"
    path.write_text(text)
    found = refusal(capsys, "profile", write_recipe(), "--hardware", path)
    assert "--hardware: " in found
    assert "cannot be read as hardware" in found
