from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmcls.data.labels import LabelSpace
from llmcls.recipe.load import load_recipe
from llmcls.results.error_analysis import error_lines, find_errors, read_texts
from llmcls.results.finished_runs import open_run
from llmcls.results.run_folder import ExperimentFolder
from tests.helpers import read_rows, write_csv
from tests.results.helpers import write_run

LABELS = LabelSpace(["books", "music"], ["books", "music"], "multi_label_classification")


@pytest.fixture
def experiment(write_recipe, products: Path, tmp_path: Path) -> ExperimentFolder:
    """Two seeds that predict the first ten test rows; row 3 is a training text, and row 0 is predicted wrongly."""
    rows = read_rows(products / "test.csv")[:10]
    rows[3] = rows[3] | {key: read_rows(products / "train.csv")[5][key] for key in ("title", "description")}
    path = write_csv(tmp_path / "test.csv", rows)
    recipe = load_recipe(write_recipe(data__test_csv=str(path), data__label_columns=LABELS.names))
    values = np.array([[float(row[name]) for name in LABELS.names] for row in rows], dtype=np.float32)
    ids, experiment = [row["uid"] for row in rows], ExperimentFolder.of(recipe)
    for number, certainty in ((0, 0.9), (1, 0.7)):
        probabilities = np.where(values > 0, certainty, 1 - certainty).astype(np.float32)
        probabilities[0, 0] = 1 - probabilities[0, 0]
        write_run(experiment.run(number), recipe, {"test": (probabilities, values)}, number, LABELS, ids)
    return experiment


def test_mistakes_and_duplicates_are_found_with_the_mean_of_the_seeds(experiment: ExperimentFolder) -> None:
    found = find_errors(open_run(experiment.run(0)), "test", 0.9)
    rows = read_rows(Path(open_run(experiment.run(0)).recipe.data.test_csv))
    assert found["seeds"] == 2
    assert [m["id"] for m in found["mistakes"]] == [rows[0]["uid"]]
    mistake = found["mistakes"][0]
    assert mistake["label"] == "books"
    assert max(mistake["probability"], 1 - mistake["probability"]) == pytest.approx(0.8), "0.9 and 0.7"
    assert mistake["text"].startswith(rows[0]["title"][:20])
    assert [d["id"] for d in found["duplicates"]] == [rows[3]["uid"]]


def test_a_seed_that_predicted_other_rows_does_not_count(experiment: ExperimentFolder) -> None:
    path = experiment.run(1).predictions("test")
    path.write_text("".join(path.read_text("utf-8").splitlines(keepends=True)[1:]), encoding="utf-8")
    assert find_errors(open_run(experiment.run(0)), "test", 0.9)["seeds"] == 1


def test_texts_have_the_ids_of_the_predictions(write_recipe, products: Path) -> None:
    rows = read_rows(products / "validation.csv")
    texts = read_texts(load_recipe(write_recipe()), "validation")
    assert texts.ids == [row["uid"] for row in rows]
    assert texts.texts[0] == f"{rows[0]['title']}\n{rows[0]['description']}"
    assert read_texts(load_recipe(write_recipe(data__id_column=None)), "validation").ids[:2] == ["0", "1"]


def test_findings_are_one_line_each_and_as_many_as_requested() -> None:
    found = {
        "seeds": 3,
        "mistakes": [
            {"id": "7", "label": "a", "said": said, "probability": 0.9, "true": ["b"], "text": "words"}
            for said in (True, False)
        ],
        "label_errors": [{"id": "8", "label": "a", "given": False, "belief": 0.01, "text": "more"}],
        "duplicates": [{"id": "9", "train_id": "1", "cosine": 0.951, "text": "again"}],
    }
    lines = error_lines(found, top=5)
    assert len(lines) == 3 + 4
    assert "2 rows" in lines[0]
    assert "3 seed(s)" in lines[0]
    assert "7: predicted a (0.900), true ['b']: words" in lines[1]
    assert "7: missed a" in lines[2]
    assert "8: lacks a" in lines[4]
    assert "9 ~ 1 (0.95): again" in lines[6]
    assert len(error_lines(found, top=1)) == 3 + 3
