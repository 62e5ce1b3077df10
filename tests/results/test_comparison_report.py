from __future__ import annotations

from pathlib import Path

import pytest

from llmcls.compare import main
from llmcls.recipe.load import load_recipe
from llmcls.results.comparison import compare_folders
from llmcls.results.run_folder import ExperimentFolder
from llmcls.thresholds import main as thresholds
from tests.results.helpers import random_case, write_run
from tests.results.page import Element, read_page


@pytest.fixture
def sides(write_recipe, tmp_path: Path) -> list[Path]:
    found = []
    for name, rate, noise in (("good", 1e-3, 0.3), ("worse", 1e-4, 0.6)):
        recipe = load_recipe(write_recipe(), [f"learning_rate={rate}"])
        folder = ExperimentFolder(tmp_path / name)
        for number in (0, 1):
            case = random_case(7 * number + int(100 * noise), noise=noise)
            write_run(folder.run(number), recipe, {"validation": case, "test": case}, seed=number)
        found.append(folder.path)
    return found


def page_of(sides: list[Path], tmp_path: Path) -> Element:
    main([*map(str, sides), "--report", str(tmp_path / "page.html")])
    return read_page(tmp_path / "page.html")


def test_the_page_has_the_numbers_of_the_comparison(sides: list[Path], tmp_path: Path, capsys) -> None:
    root, found = page_of(sides, tmp_path), compare_folders(*sides, None, 2000)
    assert f"report: {tmp_path / 'page.html'}" in capsys.readouterr().out
    for v in found.verdicts:
        row = root.one("tr", data_metric=v.metric)
        assert row.one(data_of="first").text == f"{v.first:.3f}"
        assert row.one(data_of="second").text == f"{v.second:.3f}"
        assert row.one(data_of="difference").text == f"{v.second - v.first:+.3f}"
        assert v.word in row.text
    assert root.one("p", class_="verdict").text.startswith("B is worse: micro-F1")
    assert "Take A" in root.one("ul", class_="next").text
    assert "train.learning_rate 0.001 0.0001" in root.one("section", id="recipes").text
    assert {r.attributes["data-label"] for r in root.all("tr") if "data-label" in r.attributes} == {"a", "b"}


def test_different_rules_are_two_blocks_and_the_models_come_first(sides: list[Path], tmp_path: Path) -> None:
    for run in (sides[1] / "run_0", sides[1] / "run_1"):
        thresholds(["--run", str(run), "--rule", "fixed", "--value", "0.02", "--apply"])
    root = page_of(sides, tmp_path)
    blocks = list(root.all("table", class_="forest"))
    assert len(blocks) == 2
    assert "both with thresholds joint for f1_micro" in blocks[0].one("caption").text
    assert "rules differ" not in blocks[0].text
    assert blocks[1].text.count("rules differ") == 3
    assert "same rule" in root.one("ul", class_="next").text
