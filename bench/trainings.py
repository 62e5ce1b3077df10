"""Trainings of committed recipes with overrides, each in a process of its own, kept and resumed."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcls.recipe.load import load_recipe
from llmcls.results.run_folder import ExperimentFolder

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Training:
    """One training with one seed, without baselines unless its overrides say so.

    Attributes
    ----------
    name : str
        Also the name of its folder.
    says : str
        What a table calls it.
    recipe : str
        Name in `recipes`.
    overrides : tuple of str
    seed : int
    """

    name: str
    says: str
    recipe: str
    overrides: tuple[str, ...] = ()
    seed: int = 1

    @property
    def file(self) -> Path:
        """Its recipe."""
        return ROOT / "recipes" / f"{self.recipe}.yaml"

    def all_overrides(self, out: Path) -> list[str]:
        """Its overrides, with those of its place and seed."""
        return [
            f"exp.output_root={out}", f"exp.run_name={self.name}", f"exp.seeds=[{self.seed}]", "exp.baselines=false",
            *self.overrides,
        ]  # fmt: skip

    def run(self, out: Path) -> None:
        """Train, or resume; nothing happens to a finished run."""
        profile = str(ROOT / "accel_configs" / "cpu.yaml")
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", profile, "-m", "llmcls.train"]
        done = subprocess.run([*command, str(self.file), *self.all_overrides(out)], cwd=ROOT)
        if done.returncode:
            sys.exit(f"{self.name} ended with exit code {done.returncode}")

    def metrics(self, out: Path) -> dict[str, Any] | None:
        """What it reached, or None before its end."""
        path = ExperimentFolder.of(load_recipe(self.file, self.all_overrides(out))).run(0).metrics
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def add_arguments(parser: argparse.ArgumentParser, trainings: list[Training]) -> None:
    """--out, --only and --tables."""
    parser.add_argument("--out", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--only", nargs="+", choices=[t.name for t in trainings], help="only these trainings")
    parser.add_argument("--tables", action="store_true", help="train nothing")


def run_asked(trainings: list[Training], arguments: argparse.Namespace) -> Path:
    """Run what the arguments of `add_arguments` ask for, and return the folder of the runs."""
    out: Path = arguments.out.resolve()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for training in trainings if not arguments.tables else []:
        if arguments.only is None or training.name in arguments.only:
            training.run(out)
    return out
