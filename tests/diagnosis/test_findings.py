from __future__ import annotations

from pathlib import Path

from llmcls.diagnosis.findings import Finding, Subject, fault, ok, skipped, warning
from llmcls.recipe.load import load_recipe


def test_each_kind_of_finding_says_what_was_found_and_what_to_do() -> None:
    assert ok("fine", number=1) == Finding("ok", "fine", "", {"number": 1})
    assert warning("slow", "wait") == Finding("warning", "slow", "wait")
    assert fault("broken", "repair") == Finding("fault", "broken", "repair")
    assert skipped("no GPU") == Finding("skipped", "no GPU")


def test_results_go_to_the_root_of_the_recipe_or_here(write_recipe, tmp_path: Path) -> None:
    assert Subject(load_recipe(write_recipe()), tmp_path).output_root == tmp_path / "outputs"
    assert Subject(None, tmp_path).output_root == Path(".")
