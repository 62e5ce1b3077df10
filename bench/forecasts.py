"""Are the forecasts of learning curves right? TF-IDF with a linear model at growing sizes, which takes minutes.

    BANKING77_DIR=... REUTERS_DIR=... python bench/forecasts.py [--seeds 12]

Each size is twice the one before. From the sizes up to one, the forecast of `llmcls.curve` says what twice as many rows
would bring, and the next size shows what they did. The forecasts of each seed by itself are counted, and those of three
seeds together.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from bench.material import machine, write_section  # noqa: E402
from llmcls.data.labels import LabelSpace, label_space, multi_hot  # noqa: E402
from llmcls.data.subset import chosen_rows  # noqa: E402
from llmcls.data.tables import read_table  # noqa: E402
from llmcls.evaluation.baselines import read_splits, tfidf_linear  # noqa: E402
from llmcls.evaluation.learning_curve import Forecast, drawn_means, forecast  # noqa: E402
from llmcls.evaluation.thresholds import apply_thresholds, fixed_thresholds  # noqa: E402
from llmcls.recipe.load import load_recipe  # noqa: E402
from llmcls.recipe.schema import Recipe  # noqa: E402

WORTH, TOGETHER = 0.01, 3
SETS = {
    "banking77": ("banking77", "accuracy", [154, 308, 616, 1232, 2464, 4928]),
    "Reuters": ("reuters_prompt", "f1_micro", [90, 180, 360, 720, 1440, 2880]),
}


@dataclass(frozen=True)
class Outcome:
    """A forecast, and the gain that was found."""

    forecast: Forecast
    gain: float

    @property
    def held(self) -> bool:
        """Whether the gain lies in the interval of the forecast."""
        return self.forecast.gain.low <= self.gain <= self.forecast.gain.high

    @property
    def right(self) -> bool:
        """Whether the predicted gain is on the side of `WORTH` on which the gain was found."""
        return (self.forecast.gain.value >= WORTH) == (self.gain >= WORTH)


def decisions(recipe: Recipe, labels: LabelSpace, material: tuple[Any, Any], size: int, seed: int) -> np.ndarray:
    """What TF-IDF, fitted on a sample, decides for the test rows, bool [rows, labels]."""
    texts, values = material
    data = replace(recipe.data, train_rows=size, train_rows_seed=seed)
    rows = chosen_rows(values["train"], labels, data)
    assert rows is not None
    sample = texts | {"train": [texts["train"][row] for row in rows]}
    scores = tfidf_linear(sample, values["train"][rows], labels)["test"]
    return apply_thresholds(scores, fixed_thresholds(len(labels.names)), labels)


def outcomes(true: np.ndarray, runs: list[list[np.ndarray]], sizes: list[int], metric: str) -> dict[int, Outcome]:
    """The forecast from the sizes up to each one but the last, by the number of sizes that it knows."""
    seeds = [[float(drawn_means(true, [[run]], metric, 1)[0][0]) for run in of_size] for of_size in runs]
    drawn = drawn_means(true, runs, metric, draw_runs=False)[1]
    found = {}
    for known in range(2, len(sizes)):
        made = forecast(sizes[:known], seeds[:known], drawn[:, :known])
        assert made is not None
        found[known] = Outcome(made, float(np.mean(seeds[known]) - np.mean(seeds[known - 1])))
    return found


def rows_of(name: str, seeds: list[int]) -> list[str]:
    """The lines of one set."""
    recipe_name, metric, sizes = SETS[name]
    recipe = load_recipe(ROOT / "recipes" / f"{recipe_name}.yaml", ["model.model_name=unused"])
    labels = label_space(recipe, read_table(recipe.data.train_csv, "data.train_csv", recipe.data))
    material = read_splits(recipe, labels)
    true = multi_hot(material[1]["test"], len(labels.names)).astype(bool)
    runs = {}
    for seed in seeds:
        for size in sizes:
            runs[seed, size] = decisions(recipe, labels, material, size, seed)
        print(f"{name}: seed {seed}", flush=True)
    lines = []
    for together in (1, TOGETHER):
        groups = [seeds[i : i + together] for i in range(0, len(seeds) - together + 1, together)]
        found = [outcomes(true, [[runs[s, n] for s in group] for n in sizes], sizes, metric) for group in groups]
        for known in range(2, len(sizes)):
            each = [of_group[known] for of_group in found]
            gain = np.mean([o.forecast.gain.value for o in each])
            width = np.mean([o.forecast.gain.high - o.forecast.gain.low for o in each])
            cells = [name, together, known, f"{sizes[known - 1]:,}", f"{gain:.3f} ± {width / 2:.3f}"]
            cells += [f"{np.mean([o.gain for o in each]):.3f}"]
            cells += [f"{sum(marks)} of {len(each)}" for marks in ([o.held for o in each], [o.right for o in each])]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def main() -> None:
    """Fit, forecast, compare and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=12)
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    seeds = list(range(1, arguments.seeds + 1))
    lines = [
        f"`bench/forecasts.py` on {machine()}. TF-IDF with a linear model at thresholds of 0.5, test rows; accuracy "
        "for banking77, micro-F1 for Reuters. Means over the forecasts of a line; ± is half of the 95 % interval. A "
        f"forecast is right if the predicted and the found gain are on the same side of {WORTH}.",
        "",
        "| | seeds | sizes known | rows | predicted gain of twice as many | found gain | in the interval | right |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        *(line for name in SETS for line in rows_of(name, seeds)),
    ]
    write_section("Forecasts of learning curves", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
