from __future__ import annotations

import re
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard

from llmcls.common.files import write_json
from llmcls.data.labels import LabelSpace
from llmcls.recipe.load import load_recipe
from llmcls.results import model_card as module
from llmcls.results.card_usage import Home
from llmcls.results.finished_runs import open_run
from llmcls.results.model_card import model_card, render_model_card, write_model_card
from llmcls.results.run_folder import ExperimentFolder, RunFolder
from tests.conftest import Experiment
from tests.helpers import read_json
from tests.results.helpers import random_case, write_run

HOSTILE = LabelSpace(["a|b\n# x", "<script>`"], ["a", "b"], "multi_label_classification")


def tables(page: str) -> dict[str, list[dict[str, str]]]:
    """The rows of the first table below each heading, as dictionaries."""
    found = {}
    for part in re.split("^## ", page, flags=re.MULTILINE)[1:]:
        lines = [line[2:-2].split(" | ") for line in part.splitlines() if line.startswith("|")]
        if lines:
            found[part.splitlines()[0]] = [dict(zip(lines[0], row, strict=True)) for row in lines[2:]]
    return found


def test_the_card_of_a_run_has_the_numbers_of_its_metrics(trained_once: Experiment) -> None:
    run = RunFolder(trained_once.runs[0])
    page, metrics = run.model_card.read_text(encoding="utf-8"), read_json(run.metrics)
    shown = tables(page)
    figures = {row["metric"]: row for row in shown["Results"]}
    baselines = run.experiment.baselines.read()
    for name, (low, high) in metrics["test"]["intervals"].items():
        assert figures[name]["test"] == f"{metrics['test'][name]:.4f}"
        assert figures[name]["95 % interval"] == f"{low:.4f} to {high:.4f}"
        assert figures[name]["validation"] == f"{metrics['validation'][name]:.4f}"
        assert figures[name]["at 0.5"] == f"{metrics['at_half']['test'][name]:.4f}"
        assert figures[name]["majority"] == f"{baselines['majority']['test'][name]:.4f}"
    assert [row["rows"] for row in shown["Data"]] == ["160", "40", "61"]
    thresholds = read_json(run.thresholds)["values"]
    for row in shown["Labels"]:
        label = metrics["test"]["per_class"][row["label"]]
        assert row["test f1"] == f"{label['f1']:.4f}"
        assert row["test rows"] == str(label["support"])
        assert row["threshold"] == f"{thresholds[row['label']]:.4f}"
    assert sum(int(row["train rows"]) for row in shown["Labels"]) == sum(metrics["data"]["train"]["labels"].values())

    data = ModelCard(page).data
    assert data.library_name == "peft"
    assert data.pipeline_tag == "text-classification"
    assert data.datasets == ["products"]
    assert data.base_model is None, "a folder is not on the hub"
    assert {r.metric_name: r.metric_value for r in data.eval_results} == {
        name: metrics["test"][name] for name in module.HUB_METRICS
    }
    assert {r.dataset_split for r in data.eval_results} == {"test"}


def test_the_card_shows_no_folder_of_this_machine(trained_once: Experiment) -> None:
    page = RunFolder(trained_once.runs[0]).model_card.read_text(encoding="utf-8")
    assert str(trained_once.recipe.parent) not in page
    assert "--run outputs/tiny-llama/products/run_0 " in page
    assert "[More Information Needed]" not in page, "the template of peft"
    assert "learning_rate: 0.002" in page
    assert "weight_decay" not in page, "it has its default"
    assert re.search(r"\| transformers \| \d", page)


@pytest.fixture
def run(write_recipe) -> RunFolder:
    recipe = load_recipe(write_recipe(data__dataset_name="a` [x](y) --- #"))
    folder = ExperimentFolder.of(recipe).run(0)
    splits = {"validation": random_case(0), "test": random_case(1)}
    run = write_run(folder, recipe, splits, labels=HOSTILE)
    counts = {"rows": 200, "labels": dict.fromkeys(HOSTILE.names, 7)}
    write_json(run.metrics, read_json(run.metrics) | {"data": {"train": counts, "test": counts}})
    return run


def test_names_cannot_change_the_card(run: RunFolder) -> None:
    page = render_model_card(run).read_text(encoding="utf-8")
    _, front, body = page.split("---\n", 2)
    values = yaml.safe_load(front)
    assert values["model-index"][0]["results"][0]["dataset"]["name"] == "a` [x](y) --- #"
    assert "datasets" not in values, "it is not a name that the hub allows"
    assert "<script>" not in body
    assert [row["label"] for row in tables(body)["Labels"]] == ["a&#124;b &#35; x", "&#60;script&#62;&#96;"]
    assert re.findall("^# (.*)", body, re.MULTILINE) == ["tiny-llama on a&#96; &#91;x&#93;(y) --- &#35;"]


def test_an_adapter_of_a_hub_model_names_its_base(run: RunFolder) -> None:
    recipe = load_recipe(run.recipe)
    recipe = replace(recipe, model=replace(recipe.model, model_name="org/base"))
    write_model_card(run, recipe, read_json(run.metrics))
    assert ModelCard(run.model_card.read_text(encoding="utf-8")).data.base_model == "org/base"


def test_an_exported_folder_says_so(run: RunFolder) -> None:
    page = model_card(open_run(run), Home("user/name", on_hub=True, exported=True, proof="40 rows: 0 changed"))
    assert ModelCard(page).data.library_name == "transformers"
    assert "40 rows&#58; 0 changed" in page
    assert 'model="user/name"' in page


def test_a_run_that_evaluated_nothing_has_a_card_too(run: RunFolder) -> None:
    metrics = {k: v for k, v in read_json(run.metrics).items() if k not in ("validation", "test", "data")}
    write_model_card(run, load_recipe(run.recipe), metrics)
    page = run.model_card.read_text(encoding="utf-8")
    assert "No split was evaluated." in page
    assert ModelCard(page).data.eval_results is None


def test_of_very_many_labels_some_are_shown(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHOWN_LABELS", 1)
    page = render_model_card(run).read_text(encoding="utf-8")
    assert len(tables(page)["Labels"]) == 1
    assert "1 more label" in page


def test_classes_have_no_thresholds(run: RunFolder) -> None:
    recipe, metrics = load_recipe(run.recipe), read_json(run.metrics)
    write_model_card(run, recipe, metrics)
    assert "threshold" in tables(run.model_card.read_text(encoding="utf-8"))["Labels"][0]
    one_class = replace(recipe, model=replace(recipe.model, problem_type="single_label_classification"))
    write_model_card(run, one_class, metrics)
    shown = tables(run.model_card.read_text(encoding="utf-8"))
    assert "threshold" not in shown["Labels"][0]
    assert "at 0.5" not in shown["Results"][0]
    assert set(shown["Labels"][0]) >= {"label", "train rows", "test f1"}
