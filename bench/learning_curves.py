"""Learning curves with a pretrained decoder, and whether the advice drawn from the smaller sizes was right.

    BANKING77_DIR=... REUTERS_DIR=... python bench/learning_curves.py GEMMA3 --out FOLDER [--only NAME ...] [--tables]

GEMMA3 is a folder or a name on the hub. Runs `llmcls.curve`; all trainings are kept in FOLDER, and the same command
resumes. Each size is twice the one before: a forecast from the sizes up to one is checked by the next one, whose
rows it has not seen. --seeds 1,2 adds a seed. --tables trains nothing. Either writes bench/results.md and the pictures
from what is finished.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.forecasts import WORTH, Outcome  # noqa: E402
from bench.material import machine, write_section  # noqa: E402
from llmcls.common.user_error import UserError  # noqa: E402
from llmcls.evaluation.learning_curve import advice  # noqa: E402
from llmcls.recipe.grid import Grid, tasks_of  # noqa: E402
from llmcls.recipe.load import load_recipe  # noqa: E402
from llmcls.recipe.metric_names import in_words  # noqa: E402
from llmcls.results.curve import curve_of, curve_table, write_curve  # noqa: E402
from llmcls.results.run_folder import ExperimentFolder  # noqa: E402
from llmcls.training.curve_plan import CurveRequest, curve_grid  # noqa: E402

MIN_STEPS = 100
# One evaluation, at the end: evaluations in between would take longer than the training of a few hundred rows.
AT_THE_END = "train.eval_steps=100000"


@dataclass(frozen=True)
class Curve:
    """A learning curve.

    Attributes
    ----------
    says : str
        What is trained on what.
    recipe : str
        Name in `recipes`.
    overrides : tuple of str
    sizes : list of int
        Each twice the one before.
    """

    says: str
    recipe: str
    overrides: tuple[str, ...]
    sizes: list[int]

    @property
    def file(self) -> Path:
        """Its recipe."""
        return ROOT / "recipes" / f"{self.recipe}.yaml"

    def run(self, overrides: list[str], seeds: list[int]) -> None:
        """Train what is missing."""
        sizes, which = ",".join(map(str, self.sizes)), ",".join(map(str, seeds))
        command = [sys.executable, "-m", "llmcls.curve", str(self.file), "--sizes", sizes, "--seeds", which]
        if code := subprocess.run([*command, *overrides], cwd=ROOT).returncode:
            sys.exit(f"{self.recipe} ended with exit code {code}")

    def grid(self, overrides: list[str], seeds: list[int], sizes: list[int]) -> Grid:
        """The trainings of some of the sizes."""
        recipe = load_recipe(self.file, overrides)
        return curve_grid(CurveRequest(recipe, overrides, "accel_configs/cpu.yaml", sizes, seeds, MIN_STEPS, "curve"))

    def finished(self, overrides: list[str], seeds: list[int]) -> list[int]:
        """Those of the seeds of which every size is trained."""

        def whole(seed: int) -> bool:
            grid = self.grid(overrides, [seed], self.sizes)
            recipes = [load_recipe(grid.recipe, task.overrides) for task in tasks_of(grid)]
            return all(ExperimentFolder.of(recipe).run(0).finished for recipe in recipes)

        return [seed for seed in seeds if whole(seed)]


CURVES = {
    "banking77": Curve("banking77", "banking77", (), [385, 770, 1540, 3080]),
    "reuters": Curve("Reuters, the first 64 tokens", "reuters_prompt", ("data.max_length=64",), [250, 500, 1000, 2000]),
}


def curve_lines(curve: Curve, overrides: list[str], seeds: list[int], picture: Path) -> list[str]:
    """The table of a curve, that of the forecasts, and the picture beside them."""
    found = curve_of(curve.grid(overrides, seeds, curve.sizes), WORTH)
    metric = in_words(found.metric)
    lines = [f"{curve.says}, `recipes/{curve.recipe}.yaml`: {metric} on the {found.split} rows.", ""]
    lines += [*curve_table(found), "", found.sentence, ""]
    lines += [
        f"| rows known | advice (twice as many pay from {WORTH} on) | predicted gain | found gain | in the interval | "
        "right |",
        "|---:|---|---|---|---|---|",
    ]
    values = [point.value for point in found.points["model"]]
    for known in range(2, len(found.sizes)):
        made = curve_of(curve.grid(overrides, seeds, found.sizes[:known]), WORTH).forecast
        assert made is not None
        outcome = Outcome(made, values[known] - values[known - 1])
        rows = found.sizes[known - 1]
        said = advice(made, metric, rows, WORTH).partition(":")[0].lower()
        gain = f"{made.gain.value:.4f} ({made.gain.low:.3f} to {made.gain.high:.3f})"
        held = "yes" if outcome.held else "no"
        right = "" if said == "too early to tell" else "yes" if outcome.right else "no"
        lines.append(f"| {rows:,} | {said} | {gain} | {outcome.gain:.4f} | {held} | {right} |")
    write_curve(found, picture.parent, picture.name)
    return [*lines, ""]


def main() -> None:
    """Train what is not finished, and write tables and pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gemma3", metavar="GEMMA3", help="a folder, or a name on the hub")
    parser.add_argument("--out", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--only", nargs="+", choices=list(CURVES), default=list(CURVES), help="only these sets")
    parser.add_argument("--seeds", default="1", help="default: 1")
    parser.add_argument("--tables", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    seeds, out = [int(seed) for seed in arguments.seeds.split(",")], arguments.out.resolve()
    lines = [f"`bench/learning_curves.py` on {machine()}, Gemma 3 270M with LoRA. In parentheses: 95 % intervals.", ""]
    try:
        for name, curve in CURVES.items():
            overrides = [f"exp.output_root={out}", f"model.model_name={arguments.gemma3}", AT_THE_END, *curve.overrides]
            if name in arguments.only and not arguments.tables:
                curve.run(overrides, seeds)
            if not (finished := curve.finished(overrides, seeds)):
                print(f"{name} is not finished")
                continue
            lines += curve_lines(curve, overrides, finished, out / f"curve-{name}")
            shutil.copyfile(out / f"curve-{name}.svg", ROOT / "docs" / "images" / f"curve-{name}.svg")
    except UserError as error:
        sys.exit(f"error: {error}")
    write_section("Learning curves", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
