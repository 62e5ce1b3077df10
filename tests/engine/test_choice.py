"""Which profile fits which hardware: tests/test_profile.py, tests/engine/test_profiles.py."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from llmcls.common.user_error import UserError
from llmcls.engine.choice import Choice, add_hardware_arguments, choose


def chosen(*words: str) -> Choice:
    parser = argparse.ArgumentParser()
    parser.add_argument("--profile")
    add_hardware_arguments(parser)

    def load() -> Any:
        raise AssertionError("the recipe is not needed")

    return choose(parser.parse_args(words), load)


def test_a_profile_that_is_named_needs_neither_recipe_nor_memory() -> None:
    found = chosen("--profile", "zero2", "--gpus", "4", "--machines", "2")
    assert (found.profile.stem, found.processes, found.reason) == ("zero2", 8, None)


def test_gpus_of_unknown_memory_do_not_decide() -> None:
    with pytest.raises(UserError, match="4 GPUs of unknown memory"):
        chosen("--profile", "auto", "--gpus", "4")


@pytest.mark.parametrize("content", ["[80, 80]", "80", '"80"', "null"])
def test_a_file_that_is_no_description_is_one_sentence(tmp_path, content: str) -> None:
    path = tmp_path / "hardware.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"^--hardware: .* holds a .*, not an object; write "):
        chosen("--profile", "ddp", "--hardware", str(path))
