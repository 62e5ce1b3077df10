"""The profiles of the project, and the choice between them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from llmcls.common.user_error import UserError
from llmcls.engine.hardware import Hardware
from llmcls.engine.profiles import (
    choose_profile,
    find_profile,
    launcher_of,
    processes_of,
    read_profile,
    sharding_of,
)
from llmcls.recipe.load import load_recipe
from tests.helpers import ROOT

PROFILES = sorted((ROOT / "accel_configs").glob("*.yaml"))


def test_the_documented_profiles_exist() -> None:
    assert {"cpu", "laptop_4bit", "ddp", "fsdp_qlora", "zero2"} <= {p.stem for p in PROFILES}


@pytest.mark.parametrize("path", PROFILES, ids=lambda p: p.stem)
def test_accelerate_accepts_the_profile_and_its_launcher_uses_it(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert config.num_machines == 1
    parsed = launch_command_parser().parse_args(
        ["--config_file", str(path), "--num_processes", "2", "-m", "llmcls.train"]
    )
    arguments, _, _ = _validate_launch_command(parsed)
    assert arguments.num_processes == 2
    assert arguments.use_fsdp == path.stem.startswith("fsdp")
    assert arguments.use_deepspeed == path.stem.startswith("zero")
    assert arguments.multi_gpu == (path.stem in ("cpu", "ddp"))
    if arguments.use_deepspeed:
        assert str(arguments.zero_stage) == path.stem.removeprefix("zero")


@pytest.mark.parametrize("path", [p for p in PROFILES if p.stem != "cpu"], ids=lambda p: p.stem)
def test_a_profile_leaves_the_choice_of_gpus_to_slurm_and_cuda_visible_devices(path: Path) -> None:
    # A number would become CUDA_VISIBLE_DEVICES.
    assert load_config_from_file(str(path)).gpu_ids in (None, "all")


def test_a_launcher_takes_a_process_per_gpu_and_a_free_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmcls.engine.profiles.find_hardware", lambda: Hardware([80.0] * 4, 1))
    path = str(find_profile("ddp"))
    expected = ["--config_file", path, "--num_processes", "4", "--main_process_port", "0"]
    assert launcher_of("ddp") == ["-m", "accelerate.commands.launch", *expected]


@pytest.mark.parametrize("path", PROFILES, ids=lambda p: p.stem)
def test_a_profile_repeats_no_key_of_a_recipe_and_starts_with_its_command(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert f"--config_file accel_configs/{path.name}" in text
    keys = set(re.findall(r"^\s*([a-z0-9_]+):", text, re.MULTILINE))
    of_the_recipe = {"gradient_accumulation_steps", "gradient_clipping", "train_micro_batch_size_per_gpu"}
    assert not keys & of_the_recipe
    assert read_profile(path)["compute_environment"] == "LOCAL_MACHINE"


def test_profiles_say_what_they_shard() -> None:
    assert {p.stem: sharding_of(read_profile(p)) for p in PROFILES} == {
        "cpu": "none", "laptop_4bit": "none", "ddp": "none", "zero2": "optimizer_state", "zero3": "all", "fsdp": "all",
        "fsdp_qlora": "all",
    }  # fmt: skip


def test_a_profile_is_found_by_name_from_any_folder_and_by_path(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_profile("ddp") == ROOT / "accel_configs" / "ddp.yaml"
    own = tmp_path / "mine.yaml"
    own.write_text("distributed_type: FSDP\n")
    assert find_profile("mine.yaml") == Path("mine.yaml")
    assert find_profile(str(own)) == own
    # A profile of the user goes before one of the project.
    (tmp_path / "accel_configs").mkdir()
    (tmp_path / "accel_configs" / "ddp.yaml").write_text("distributed_type: MULTI_GPU\n")
    assert find_profile("ddp") == Path("accel_configs/ddp.yaml")
    with pytest.raises(UserError, match=r"no profile 'dpp'.* cpu, ddp, fsdp"):
        find_profile("dpp")


@pytest.mark.parametrize(
    "gpus, machines, needed, overrides, profile",
    [
        ([], 1, 5, [], "cpu"),
        ([8], 1, 5, ["model.use_4bit=true"], "laptop_4bit"),
        ([80], 1, 20, [], "laptop_4bit"),
        ([24] * 4, 1, 5, [], "ddp"),
        ([24] * 4, 1, 50, ["model.use_4bit=true"], "fsdp_qlora"),
        ([24] * 4, 1, 30, [], "fsdp"),
        # The smallest GPU decides.
        ([80, 24], 1, 30, [], "fsdp"),
        ([80], 2, 20, [], "ddp"),
        ([80] * 2, 2, 120, ["model.lora_r=0"], "fsdp"),
    ],
)
def test_the_profile_follows_from_memory_and_model(gpus, machines, needed, overrides, profile) -> None:
    recipe = load_recipe(ROOT / "recipes" / "quickstart.yaml", overrides)
    asked: list[int] = []

    def need(ranks: int) -> tuple[float, str]:
        asked.append(ranks)
        return needed, "as traced"

    name, reason = choose_profile(Hardware(gpus, machines), recipe, need)
    assert name == profile
    assert "GPU" in reason
    assert asked == ([len(gpus) * machines] if gpus else [])


def test_one_gpu_that_is_too_small_is_said() -> None:
    recipe = load_recipe(ROOT / "recipes" / "quickstart.yaml")
    name, reason = choose_profile(Hardware([8.0]), recipe, lambda _: (17.2, "traced"))
    assert name == "laptop_4bit"
    assert "a copy needs about 17 GiB (traced), a GPU has 8; it may not fit" in reason
    unknown = choose_profile(Hardware([8.0] * 2), recipe, lambda _: (None, "the shape of x is unknown"))
    assert unknown[0] == "ddp"
    assert "is not known: the shape of x is unknown; --model-size says it" in unknown[1]


@pytest.mark.parametrize(
    "profile, gpus, machines, processes",
    [("cpu", 0, 1, 1), ("laptop_4bit", 4, 1, 1), ("ddp", 4, 2, 8), ("fsdp", 0, 2, 2)],
)
def test_a_process_per_gpu_of_every_machine(profile: str, gpus: int, machines: int, processes: int) -> None:
    assert processes_of(profile, Hardware([80.0] * gpus, machines)) == processes


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "compute_environment: LOCAL_MACHINE"])
def test_a_file_that_is_no_profile_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "profile.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"profile\.yaml (cannot be read as a|is not a) profile"):
        read_profile(path)
