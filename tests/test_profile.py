from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmcls.common.user_error import UserError
from llmcls.profile import main
from tests.helpers import ROOT, refusal

pytestmark = pytest.mark.slow


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
    on_cpu = chosen(capsys, recipe, "--hardware", hardware())
    assert on_cpu["profile"] == "cpu"
    assert [Path(file).name for file in on_cpu["files"]] == [
        "train.csv", "validation.csv", "test.csv", "tiny-llama"
    ]  # fmt: skip
    one = chosen(capsys, recipe, "--hardware", hardware(24))
    assert (one["processes"], one["gpus"]) == (1, 1)
    two = chosen(capsys, recipe, "--hardware", hardware(80, 80))
    assert (two["profile"], two["processes"]) == ("ddp", 2)
    assert "a copy needs about 1 GiB (traced from its configuration), a GPU has 80" in two["reason"]


@pytest.mark.parametrize(
    "gpus, machines, size, overrides, profile, processes",
    [
        ([], 1, "1B", [], "cpu", 1),
        ([8], 1, "1B", ["model.use_4bit=true"], "laptop_4bit", 1),
        pytest.param([80], 1, "8B", [], "laptop_4bit", 1, marks=pytest.mark.long),
        ([24, 24, 24, 24], 1, "1B", [], "ddp", 4),
        pytest.param([24, 24, 24, 24], 1, "70B", ["model.use_4bit=true"], "fsdp_qlora", 4, marks=pytest.mark.long),
        pytest.param([24, 24, 24, 24], 1, "13B", [], "fsdp", 4, marks=pytest.mark.long),
        pytest.param([80, 80], 2, "8B", [], "ddp", 4, marks=pytest.mark.long),
        pytest.param([80], 2, "8B", [], "ddp", 2, marks=pytest.mark.long),
        ([80, 80], 2, "8B", ["model.lora_r=0"], "fsdp", 4),
    ],
)
def test_each_size_gets_its_profile(hardware, capsys, gpus, machines, size, overrides, profile, processes) -> None:
    path = hardware(*gpus, machines=machines)
    recipe = ROOT / "recipes" / "quickstart.yaml"
    found = chosen(capsys, recipe, *overrides, "--hardware", path, "--model-size", size)
    assert (found["profile"], found["processes"], found["machines"]) == (profile, processes, machines)


def test_a_four_bit_8b_model_is_not_sent_to_a_card_where_it_does_not_fit(write_recipe, hardware, capsys) -> None:
    recipe = write_recipe(
        model__use_4bit=True, model__torch_dtype="bfloat16", model__lora_r=8, model__lora_target_modules=["all-linear"],
        train__gradient_checkpointing=False, train__batch_size=9, data__max_length=512,
    )  # fmt: skip
    found = chosen(capsys, recipe, "--hardware", hardware(24, 24), "--model-size", "8B")
    assert found["profile"] == "fsdp_qlora"
    assert "a copy needs about 27 GiB (guessed from 8 billion parameters), a GPU has 24" in found["reason"]


def test_without_a_gpu_nothing_heavy_is_imported(write_recipe, hardware) -> None:
    code = f"import sys, llmcls.profile as p; p.main([{str(write_recipe())!r}, '--hardware', {str(hardware())!r}])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("profile: cpu")


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


@pytest.mark.parametrize(
    "text, cause",
    [
        ("", "is not JSON"),
        ("\x00", "is not JSON"),
        ('[{"memory_gib": 80}]', "holds a list, not an object"),
        ('{"gpus": 3}', '"gpus" is not a list of objects with "memory_gib"'),
        ('{"gpus": [{}]}', '"gpus" is not a list of objects with "memory_gib"'),
        ('{"machines": 0}', '"machines" is not a whole number from 1'),
    ],
)
def test_hardware_that_cannot_be_read_is_one_sentence(
    write_recipe, tmp_path: Path, capsys, text: str, cause: str
) -> None:
    path = tmp_path / "hardware.json"
    path.write_text(text)
    found = refusal(capsys, "profile", write_recipe(), "--hardware", path)
    assert "--hardware: " in found
    assert f"{cause}; write " in found
    assert '{"gpus": [{"memory_gib": 80}], "machines": 2}' in found
    assert "Error" not in found
