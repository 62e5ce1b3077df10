from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llmcls.common.files import write_json
from llmcls.common.user_error import UserError
from llmcls.data.labels import LabelSpace
from llmcls.evaluation.baseline_store import Baseline
from llmcls.recipe.load import load_recipe
from llmcls.results.report import render_experiment_report, render_report, write_report
from llmcls.results.run_folder import ExperimentFolder, RunFolder
from tests.conftest import Experiment
from tests.helpers import ROOT, read_json, write_csv
from tests.results.helpers import random_case, write_run
from tests.results.page import Element, read_page

# What a text of a user may contain, in a label, a text, an id and the name of a data set.
NASTY = "<script>alert(1)</script>&\"'"


@pytest.fixture
def run(write_recipe) -> RunFolder:
    recipe = load_recipe(write_recipe(data__label_columns=["a", "b"]))
    return write_run(ExperimentFolder.of(recipe).run(0), recipe, {"validation": random_case(0), "test": random_case(1)})


def shown(value: float) -> str:
    return f"{value:.3f}"


def test_a_report_needs_no_other_file_and_no_network(run: RunFolder) -> None:
    page = render_report(run).read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert links
    assert [link for link in links if not link.startswith("#")] == []
    assert not re.search(r"url\(|@import|https?://", page)


def test_every_link_leads_somewhere_and_no_id_occurs_twice(trained_once: Experiment) -> None:
    root = read_page(trained_once.runs[0] / "report.html")
    ids = [e.attributes["id"] for e in root.all() if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    targets = {e.attributes["href"][1:] for e in root.all("a")}
    assert targets <= set(ids)


def test_numbers_of_a_run_are_those_of_its_metrics(trained_once: Experiment) -> None:
    run = RunFolder(trained_once.runs[0])
    metrics, root = read_json(run.metrics), read_page(run.report)
    test, thresholds = metrics["test"], read_json(run.thresholds)["values"]
    assert root.one(data_headline="f1_micro").text == shown(test["f1_micro"])
    for name, (low, high) in test["intervals"].items():
        row = next(r for r in root.all("tr", data_metric=name) if list(r.all(data_of="interval")))
        assert row.one(data_of="value").text == shown(test[name])
        assert row.one(data_of="interval").text == f"{shown(low)} to {shown(high)}"
    metrics_table = root.one("table", id="metrics")
    for split in ("train", "validation", "test"):
        for row in metrics_table.all("tr", data_metric="average_precision_macro"):
            assert row.one(data_split=split).text == shown(metrics[split]["average_precision_macro"])
    rows = {r.attributes["data-label"]: r for r in root.one("table", id="label-table").all("tr") if r.attributes}
    assert rows.keys() == test["per_class"].keys()
    for name, values in test["per_class"].items():
        for key in ("f1", "precision", "recall", "average_precision"):
            assert rows[name].one(data_of=key).text == shown(values[key])
        assert rows[name].one(data_of="support").text == str(values["support"])
        assert rows[name].one(data_of="threshold").text == shown(thresholds[name])
        assert rows[name].one(data_of="train").text == str(metrics["data"]["train"]["labels"][name])
    supports = [int(row.one(data_of="support").text) for row in rows.values()]
    assert supports == sorted(supports, reverse=True)
    confusions = [[cell.text for cell in row.all() if cell.tag in ("th", "td")] for row in
                  list(root.one("table", id="confusion-table").all("tr"))[1:]]  # fmt: skip
    assert confusions == [[c["true"], c["predicted"] or "nothing", str(c["rows"])] for c in test["confusions"]]


def test_baselines_are_bars_beside_the_result(trained_once: Experiment) -> None:
    root = read_page(trained_once.runs[0] / "report.html")
    baselines = read_json(trained_once.folder / "baselines.json")["baselines"]
    assert set(baselines) >= {"majority", "tfidf_linear"}
    for name, found in baselines.items():
        assert root.one(data_bar=name).text == shown(found["test"]["f1_micro"])
    assert len(list(root.all("span", class_="whisker"))) == 1 + len(baselines)


def test_one_page_has_all_seeds(trained_once: Experiment) -> None:
    root = read_page(trained_once.folder / "report.html")
    summary = read_json(trained_once.folder / "summary.json")
    found = summary["test"]["f1_micro"]
    assert root.one(data_headline="f1_micro").text == shown(found["mean"])
    row = next(r for r in root.all("tr", data_metric="f1_micro") if list(r.all(data_of="interval")))
    assert [cell.text for cell in row.all(data_of="seed")] == [shown(v) for v in found["values"]]
    low, high = map(float, row.one(data_of="interval").text.split(" to "))
    assert low <= found["mean"] <= high
    assert "seeds 1, 2" in root.one("title").text
    assert summary["verdict"]["sentence"] in root.one("p", class_="verdict").text
    folders = [row.text for row in root.one("table", id="seed-table").all("tr")]
    assert "run_0" in folders[1]
    assert "run_1" in folders[2]


def test_curves_have_every_logged_step_and_each_seed(trained_once: Experiment) -> None:
    root = read_page(trained_once.folder / "report.html")
    loss = next(f for f in root.all("figure") if f.text.startswith("Loss"))
    lines = list(loss.all("polyline"))
    logged = [line for line in (trained_once.runs[0] / "metrics.jsonl").read_text().splitlines() if '"train"' in line]
    assert len(logged) > 2
    assert len(lines) == 2, "the validation loss of one epoch is a single point"
    assert {len(line.attributes["points"].split()) for line in lines} == {len(logged)}


def test_data_devices_time_and_cost_are_named(trained_once: Experiment) -> None:
    run = RunFolder(trained_once.runs[0])
    root, metrics = read_page(run.report), read_json(run.metrics)
    data = root.one("table", id="data-table")
    for split in ("train", "validation", "test"):
        row = data.one("tr", data_split=split)
        assert row.one(data_of="rows").text == str(metrics["data"][split]["rows"])
        assert f"{split}.csv" in row.text
    facts = {d.one("dt").text: d.one("dd").text for d in root.one("dl", class_="facts-table").all("div")}
    assert facts["devices"] == "cpu"
    assert facts["cost"].endswith("hours of processes, evaluation not included")
    assert f"{metrics['training']['samples_per_second']:,.1f} texts/s" in facts["speed"]
    assert "torch" in facts["versions"]


def test_gpu_hours_are_time_times_devices(run: RunFolder) -> None:
    write_json(run.environment, {"device": "NVIDIA H100", "processes": 4, "engine": "ddp", "mixed_precision": "bf16"})
    metrics = read_json(run.metrics)
    metrics["training"]["seconds"] = 1800.0
    write_report(run, load_recipe(run.recipe), metrics)
    text = read_page(run.report).one("dl", class_="facts-table").text
    assert "4 × NVIDIA H100" in text
    assert "2 GPU hours" in text
    assert "30 min 0 s" in text


def test_mistakes_and_label_errors_have_their_texts(write_recipe, products: Path, tmp_path: Path) -> None:
    rows = [{"uid": str(i), "title": f"title {i} {NASTY}", "a": 0, "b": 0} for i in range(200)]
    path = write_csv(tmp_path / "test.csv", rows)
    changes = {"data__test_csv": str(path), "data__text_fields": ["title"], "data__label_columns": ["a", "b"]}
    recipe = load_recipe(write_recipe(data__dataset_name="weird & <b>", **changes))
    ids = [str(i) for i in range(200)]
    run = write_run(RunFolder(tmp_path / "run_0"), recipe, {"test": random_case(0)}, ids=ids)
    root = read_page(render_report(run))
    mistakes, errors = root.all("ol", class_="texts")
    assert len(list(mistakes.all("li"))) == 20
    assert len(list(mistakes.all("li", class_="more"))) == 12
    first = next(mistakes.all("li"))
    number = first.one("span", class_="id").text
    assert first.one("blockquote").text == f"title {number} {NASTY}"
    assert "with probability" in first.text
    assert list(errors.all("blockquote"))
    path.unlink()
    gone = read_page(render_report(run))
    assert "The texts cannot be shown" in gone.one("section", id="texts").text
    assert len(list(gone.all("ol", class_="texts"))) == 2


def test_everything_from_data_is_escaped(write_recipe, tmp_path: Path) -> None:
    names = [f"{NASTY}{i}" for i in range(2)]
    recipe = load_recipe(write_recipe(data__label_columns=names, data__dataset_name="<i>set"))
    labels = LabelSpace(names, names, "multi_label_classification")
    run = write_run(RunFolder(tmp_path / "run_0"), recipe, {"test": random_case(0)}, labels=labels)
    write_json(run.environment, {"device": NASTY, "processes": 1})
    page = render_report(run).read_text(encoding="utf-8")
    assert page.count("<script>") == 1
    assert "<i>set" not in page
    assert {r.attributes["data-label"] for r in read_page(run.report).all("tr") if "data-label" in r.attributes} == set(
        names
    )


def classes(write_recipe, folder: Path, count: int, rows: int) -> RunFolder:
    """A run with many classes, one of each per row."""
    kind = "single_label_classification"
    recipe = load_recipe(write_recipe(data__label_columns=["class"], model__problem_type=kind))
    names = [f"class number {i}" for i in range(count)]
    labels = LabelSpace(names, ["class"], kind, names)
    rng = np.random.default_rng(0)
    values = rng.integers(count, size=rows)
    scores = rng.random((rows, count)) + (np.arange(count) == values[:, None]) * 0.9
    probabilities = (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)
    return write_run(RunFolder(folder / "run_0"), recipe, {"test": (probabilities, values)}, labels=labels)


def test_classes_have_a_heat_map_and_no_thresholds(write_recipe, tmp_path: Path) -> None:
    run = classes(write_recipe, tmp_path, 5, 60)
    root = read_page(render_report(run))
    picture = root.one("svg", class_="heat")
    cells = [e for e in picture.all("rect") if e.attributes["class"].startswith("cell")]
    total = sum(int(re.search(r": (\d+) rows", cell.text).group(1)) for cell in picture.all("title"))
    assert cells
    assert total == 60
    right = round(read_json(run.metrics)["test"]["accuracy"] * 60)
    assert f"{right} of 60 rows are on the diagonal" in picture.attributes["aria-label"]
    for section in root.one("main").all("section"):
        if section.attributes["id"] not in ("glossary", "recipe"):
            assert "threshold" not in section.text.lower()


def test_a_thousand_labels_stay_small_and_can_be_searched(write_recipe, tmp_path: Path) -> None:
    run = classes(write_recipe, tmp_path, 1000, 120)
    path = render_report(run)
    assert path.stat().st_size < 2_000_000
    root = read_page(path)
    rows = [r for r in root.one("table", id="label-table").all("tr") if "data-label" in r.attributes]
    assert len(rows) == 1000
    assert sum(r.attributes.get("class") != "more" for r in rows) == 40
    assert root.one("input", type="search").attributes["id"] == "find"
    assert "Show all 1,000 labels" in root.one("label", for_="all-labels").text


def test_few_labels_have_no_search(run: RunFolder) -> None:
    root = read_page(render_report(run))
    assert not list(root.all("input", type="search"))
    assert not list(root.all("input", id="all-labels"))


def test_a_report_says_which_rule_decided_and_what_the_others_would_reach(trained: Experiment) -> None:
    run = RunFolder(trained.runs[0])
    metrics = read_json(run.metrics)
    metrics["thresholds"] = {"rule": "joint", "metric": "f1_micro", "reason": "0.7 against 0.6 at 0.5"}
    write_report(run, load_recipe(run.recipe), metrics)
    text = read_page(run.report).one("section", id="result").text
    assert "Thresholds: joint, tuned on validation for f1_micro (0.7 against 0.6 at 0.5)." in text
    for rule, words in (("per_class", "per_class (f1_macro)"), ("joint", "joint (f1_micro)"), ("fixed", "0.5")):
        value = metrics["threshold_rules"][rule]["test"]["f1_samples"]
        assert re.search(rf"{re.escape(words)} .*{shown(value)}", text)


def test_the_curve_of_the_metric_has_its_value_at_one_half_beside_it(run: RunFolder) -> None:
    recipe, metrics = load_recipe(run.recipe), read_json(run.metrics)
    for rule, drawn in (("fixed", False), ("joint", True)):
        metrics["history"][0] |= {"at_half": {"f1_micro": 0.0}, "thresholds": rule}
        write_report(run, recipe, metrics)
        chart = next(f for f in read_page(run.report).all("figure") if f.text.startswith("Validation micro-F1"))
        assert ("at 0.5" in chart.text) is drawn


def test_a_recipe_without_baselines_shows_none(run: RunFolder) -> None:
    measured = {"test": dict.fromkeys(("f1_micro", "f1_macro", "accuracy"), 0.1234)}
    run.experiment.baselines.write("texts", "key", {"majority": Baseline(measured, {})})
    recipe = load_recipe(run.recipe)
    write_report(run, replace(recipe, exp=replace(recipe.exp, baselines=None)), read_json(run.metrics))
    assert read_page(run.report).one(data_bar="majority").text == "0.123"
    write_report(run, recipe, read_json(run.metrics))
    assert not list(read_page(run.report).all(data_bar="majority"))


def test_a_run_that_evaluated_nothing_has_a_report_too(run: RunFolder) -> None:
    metrics = {k: v for k, v in read_json(run.metrics).items() if k not in ("validation", "test")}
    write_report(run, load_recipe(run.recipe), metrics | {"history": [{"step": 1, "train_loss": 0.5}]})
    root = read_page(run.report)
    assert "No split was evaluated" in root.text
    assert "nobody knows how good this model is" in root.text


def test_another_training_loss_is_labelled(run: RunFolder) -> None:
    recipe = load_recipe(run.recipe)
    write_report(run, replace(recipe, train=replace(recipe.train, loss="focal")), read_json(run.metrics))
    assert "validation (cross-entropy)" in read_page(run.report).text


def test_a_deleted_report_is_rendered_again_from_the_files_of_the_run(trained: Experiment) -> None:
    folder = RunFolder(trained.runs[0])
    before = folder.report.read_text(encoding="utf-8")
    folder.report.unlink()
    assert render_report(folder) == folder.report
    assert folder.report.read_text(encoding="utf-8") == before
    whole = ExperimentFolder(trained.folder)
    before = whole.report.read_text(encoding="utf-8")
    whole.report.unlink()
    assert render_experiment_report([RunFolder(r) for r in trained.runs]) == whole.report
    assert whole.report.read_text(encoding="utf-8") == before


def test_an_unfinished_run_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        render_report(RunFolder(tmp_path))


def test_no_path_of_this_machine_is_on_the_page(trained_once: Experiment, products: Path) -> None:
    text = (trained_once.runs[0] / "report.html").read_text(encoding="utf-8")
    assert str(products) not in text
    assert str(trained_once.recipe.parent) not in text


def test_a_page_is_accessible(trained_once: Experiment) -> None:
    root = read_page(trained_once.folder / "report.html")
    assert root.one("html").attributes["lang"] == "en"
    assert len(list(root.all("h1"))) == 1
    pictures = [e for e in root.all("svg") if e.attributes.get("aria-hidden") != "true"]
    assert pictures
    assert all(e.attributes["role"] == "img" and len(e.attributes["aria-label"]) > 20 for e in pictures)
    assert all(e.attributes.get("tabindex") == "0" for e in root.all(role="region")), "scrolled with the keyboard"
    assert all(e.attributes.get("scope") in ("col", "row") for e in root.all("th"))
    assert not [b for a, b in zip(levels(root), levels(root)[1:], strict=False) if b > a + 1], "no level is skipped"


def levels(root: Element) -> list[int]:
    return [int(e.tag[1]) for e in root.all() if re.fullmatch("h[1-6]", e.tag)]


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_have_the_contrast_of_wcag_aa(run: RunFolder) -> None:
    style = read_page(render_report(run)).one("style").inside[0]
    themes = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    assert len(themes) == 3, "light, dark, print"
    for theme in themes:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", theme))

        def contrast(a: str, b: str, colours: dict[str, str] = colours) -> float:
            high, low = sorted((luminance(colours[a]), luminance(colours[b])), reverse=True)
            return (high + 0.05) / (low + 0.05)

        for ink in ("ink", "soft", "accent"):
            assert contrast(ink, "page") >= 4.5
            assert contrast(ink, "card") >= 4.5
        assert contrast("ink", "meter") >= 4.5
        for series in ("c0", "c1", "c2", "c3", "c4", "c5", "right", "wrong"):
            assert contrast(series, "card") >= 3


def test_the_script_of_the_pictures_makes_sample_runs(tmp_path: Path) -> None:
    specification = importlib.util.spec_from_file_location(
        "make_report_pictures", ROOT / "docs/make_report_pictures.py"
    )
    assert specification is not None
    assert specification.loader is not None
    script = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = script
    specification.loader.exec_module(script)
    runs = script.write_sample("messages", script.two(), tmp_path)
    root = read_page(render_experiment_report(runs))
    assert "F1 of the positive class" in root.one("section", id="result").text
    assert "2 × NVIDIA H100" in root.text
