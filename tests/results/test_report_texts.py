from __future__ import annotations

from pathlib import Path

import numpy as np

from llmcls.data.labels import LabelSpace
from llmcls.recipe.load import load_recipe
from llmcls.results.report_source import Source, read_seed
from llmcls.results.report_texts import texts_to_look_at
from llmcls.results.run_folder import RunFolder
from tests.helpers import write_csv
from tests.results.helpers import MULTI, random_case, write_run


def test_what_most_seeds_decide_is_judged(write_recipe, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", [{"uid": f"r{i}", "title": f"text {i}"} for i in range(200)])
    recipe = load_recipe(write_recipe(data__test_csv=str(path), data__text_fields=["title"]))
    probabilities, values = random_case(0)
    probabilities = np.where(values > 0, 0.9, 0.1).astype(np.float32)
    wrong = probabilities.copy()
    wrong[7] = 1 - wrong[7]
    runs = [
        write_run(RunFolder(tmp_path / f"run_{n}"), recipe, {"test": (p, values)}, seed=n)
        for n, p in enumerate((wrong, wrong, probabilities))
    ]
    found = texts_to_look_at(Source(recipe, MULTI, [read_seed(run) for run in runs]))
    assert [(m["id"], m["text"]) for m in found["mistakes"]] == [("r7", "text 7")]
    assert found["counts"]["mistakes"] == 1
    assert texts_to_look_at(Source(recipe, MULTI, [read_seed(runs[2])]))["mistakes"] == []


def test_a_table_that_changed_since_leaves_its_findings_without_texts(write_recipe, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", [{"other": "x"}])
    recipe = load_recipe(write_recipe(data__test_csv=str(path)))
    run = write_run(RunFolder(tmp_path / "run_0"), recipe, {"test": random_case(0)})
    found = texts_to_look_at(Source(recipe, MULTI, [read_seed(run)]))
    assert found["problem"]
    assert found["mistakes"][0]["text"] == ""


def test_classes_of_several_seeds_are_decided_by_their_mean(write_recipe, tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    labels = LabelSpace(names, ["c"], "single_label_classification", names)
    recipe = load_recipe(write_recipe(data__label_columns=["c"], model__problem_type=labels.problem_type))
    each = [np.array([row], dtype=np.float32) for row in ([0.6, 0.3, 0.1], [0.0, 0.6, 0.4], [0.0, 0.4, 0.6])]
    runs = [
        write_run(RunFolder(tmp_path / f"run_{n}"), recipe, {"test": (p, np.array([0]))}, seed=n, labels=labels)
        for n, p in enumerate(each)
    ]
    found = texts_to_look_at(Source(recipe, labels, [read_seed(run) for run in runs]))
    [mistake] = found["mistakes"]
    assert (mistake["label"], mistake["said"], mistake["true"]) == ("a", False, ["a"]), "b is the most probable"
