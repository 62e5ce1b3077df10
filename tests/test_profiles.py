from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

ROOT = Path(__file__).resolve().parent.parent
PROFILES = sorted((ROOT / "accel_configs").glob("*.yaml"))


def test_the_promised_profiles_are_there() -> None:
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


@pytest.mark.parametrize("path", PROFILES, ids=lambda p: p.stem)
def test_a_profile_says_nothing_a_recipe_says_and_is_headed_by_its_command(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert f"--config_file accel_configs/{path.name}" in text
    keys = set(re.findall(r"^\s*([a-z0-9_]+):", text, re.MULTILINE))
    of_the_recipe = {"gradient_accumulation_steps", "gradient_clipping", "train_micro_batch_size_per_gpu"}
    assert not keys & of_the_recipe
    assert yaml.safe_load(text)["compute_environment"] == "LOCAL_MACHINE"
