from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmcls.common.user_error import UserError
from llmcls.distill import main
from tests.helpers import fresh_accelerator, predict, read_json, read_lines, read_rows, refusal, train, write_csv

pytestmark = pytest.mark.slow


@pytest.fixture
def texts(products: Path, tmp_path: Path) -> Path:
    """The texts of validation without labels, and an empty one."""
    rows = [
        {"title": row["title"], "description": row["description"]} for row in read_rows(products / "validation.csv")
    ]
    return write_csv(tmp_path / "texts.csv", [*rows, {"title": " ", "description": ""}])


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts run in this process; the modules that would have started others."""
    parts: list[str] = []

    def start(command: list[str], what: str) -> None:
        module, arguments = command[2], command[3:]
        parts.append(module)
        fresh_accelerator()
        if module == "llmcls.predict":
            predict(*arguments)
        else:
            train(Path(arguments[0]), *arguments[1:])

    monkeypatch.setattr("llmcls.distill.run_part", start)
    return parts


def test_a_student_learns_what_the_teacher_says_and_resumes(
    trained, texts: Path, here: list[str], tmp_path: Path, monkeypatch, capsys
) -> None:
    teacher = trained.runs[0]
    short = ["max_steps=2", "train_rows=32", "train_metrics_rows=0", "exp.seeds=[1]", "baselines=false"]
    arguments = ["--run", str(teacher), "--texts", str(texts), str(trained.recipe), *short]
    # Killed after the prediction: it is kept.
    with monkeypatch.context() as patch:
        patch.setattr("llmcls.distill.write_rows", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            main(arguments)
    assert here == ["llmcls.predict"]
    main(arguments)
    assert here == ["llmcls.predict", "llmcls.train"]
    assert "student: 32 labelled rows, 40 from the teacher, 1 empty texts left out" in capsys.readouterr().out
    student = trained.folder / "distilled"
    rows, said = (
        read_lines(student / "distillation" / "train.jsonl"),
        read_lines(student / "distillation/teacher.jsonl"),
    )
    assert len(rows) == 72
    assert {row["books"] for row in rows[:32]} == {"0", "1"}
    for row, line in zip(rows[32:], said, strict=False):
        assert {name: float(row[name]) for name in line["probabilities"]} == pytest.approx(
            line["probabilities"], rel=1e-5
        )
    recipe = (student / "run_0" / "recipe.yaml").read_text(encoding="utf-8")
    assert "soft_labels: true" in recipe
    named = "tiny-llama on products, seed 1"
    assert f"distilled from {named}" in (student / "run_0" / "report.html").read_text(encoding="utf-8")
    assert f"Distilled from {named}" in (student / "summary.md").read_text(encoding="utf-8")
    assert f"Distilled from {named}" in (student / "run_0" / "model" / "README.md").read_text(encoding="utf-8")
    # Its test rows have the labels that they had.
    assert read_json(student / "run_0" / "metrics.json")["data"]["test"]["rows"] == 61
    texts.write_text("title,description\nanother,text\n", encoding="utf-8")
    with pytest.raises(UserError, match="is from another teacher, other texts or another training file"):
        main(arguments)


def test_rows_of_one_column_are_taught_by_name_beside_validation_rows_with_labels(
    trained_once, texts: Path, here: list[str], write_recipe, tmp_path: Path, products: Path, capsys
) -> None:
    """The label column says all labels of a row; a part of the labelled rows is held out."""
    labels = list(read_json(trained_once.runs[0] / "model" / "labels.json")["names"])
    rows = read_rows(products / "train.csv")[:60]
    for row in rows:
        row["topics"] = "|".join(name for name in labels if row[name] == "1")
    rows[0]["topics"] = "|".join(labels)
    recipe = write_recipe(
        data__train_csv=str(write_csv(tmp_path / "few.csv", rows)), data__label_columns=["topics"],
        data__label_separator="|", data__val_csv=None, data__test_csv=None, data__validation_split=0.2,
        train__max_steps=1, train__train_metrics_rows=0,
    )  # fmt: skip
    main(["--run", str(trained_once.runs[0]), "--run", str(trained_once.runs[1]), "--texts", str(texts), str(recipe)])
    student = tmp_path / "outputs/tiny-llama/products/distilled"
    taught = read_lines(student / "distillation" / "train.jsonl")
    held = read_lines(student / "distillation" / "validation.jsonl")
    assert len(held) + len(taught) == 60 + 40
    assert 10 <= len(held) <= 14
    assert {row["uid"] for row in held}.isdisjoint(row["uid"] for row in taught)
    assert all(set(json.loads(row["topics"])) <= set(labels) for row in taught[-40:])
    metrics = read_json(student / "run_0" / "metrics.json")
    assert metrics["data"]["train"]["rows"] == len(taught)
    assert metrics["data"]["validation"]["rows"] == len(held)
    found = read_json(student / "summary.json")
    assert found["seeds"] == [1]
    assert "seed 1 and tiny-llama on products, seed 2" in (student / "summary.md").read_text(encoding="utf-8")


def test_teachers_and_texts_that_do_not_fit_are_one_sentence(trained_once, texts: Path, write_recipe, capsys) -> None:
    run_0, recipe = trained_once.runs[0], write_recipe(data__label_columns=["books", "toys"])
    given = ["--run", run_0, "--texts", texts, recipe]
    assert "has the label 'electronics' (8 differ); both need the same labels" in refusal(capsys, "distill", *given)
    kind = ["label_columns=[books]", "problem_type=binary_classification"]
    assert "is multi_label_classification, the recipe binary" in refusal(capsys, "distill", *given, *kind)
    texts.write_text("text\nx\n", encoding="utf-8")
    whole = write_recipe(data__label_columns=list(read_json(run_0 / "model" / "labels.json")["names"]))
    assert "has no column 'title'" in refusal(capsys, "distill", "--run", run_0, "--texts", texts, whole)
    assert "not defined for probabilities" in refusal(
        capsys, "distill", "--run", run_0, "--texts", texts, whole, "train.loss=asymmetric"
    )
