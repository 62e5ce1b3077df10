from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmcls.common.signals import STOP_AFTER
from llmcls.common.user_error import UserError
from llmcls.recipe.load import load_recipe
from llmcls.results.run_folder import RunFolder
from llmcls.training.sink import Sink
from llmcls.training.trackers import Tracker, check_trackers, close_all, open_trackers
from tests.conftest import small_recipe
from tests.helpers import TOPICS, read_json, read_lines, train
from tests.training.wandb_file import OfflineRun, read_offline_run

TABLES = {"per_class", "results", "thresholds", "calibration", "mistakes", "probable_label_errors"}
FIGURES = {"against_baselines", "precision_recall", "calibration"}
SERIES = {
    "train/loss", "train/learning_rate", "train/head_learning_rate", "train/gradient_norm", "train/samples_per_second",
    "train/tokens_per_second", "train/memory_gb", "validation/loss", "validation/f1_micro", "validation/f1_macro",
    "validation/at_half/f1_micro", "final_test/f1_micro",
    "baselines/majority/validation/f1_micro", "baselines/tfidf_linear/test/f1_macro",
}  # fmt: skip


def _quiet(*_: Any) -> None:
    pass


def test_a_tracker_gets_every_number_in_order_and_is_closed() -> None:
    got: list[Any] = []
    tracker = Tracker(
        "board", lambda: Sink(lambda step, numbers: got.append((step, numbers)), _quiet, lambda: got.append("end"))
    )
    for step in range(100):
        tracker.send(step, {"loss": float(step)})
    tracker.close()
    assert got == [*((step, {"loss": float(step)}) for step in range(100)), "end"]


@pytest.mark.parametrize("when", ["open", "send", "close"])
def test_a_tracker_that_fails_is_dropped_with_one_warning(when: str, log_lines: list[str]) -> None:
    def failing(*_: Any) -> None:
        raise ConnectionError("the service\nis gone")

    def opened() -> Sink:
        if when == "open":
            failing()
        return Sink(failing if when == "send" else _quiet, _quiet, failing if when == "close" else _quiet)

    tracker = Tracker("wandb", opened)
    for step in range(3):
        tracker.send(step, {"loss": 1.0})
    tracker.close()
    assert log_lines == [
        "wandb failed (the service is gone); training continues without it, and metrics.jsonl has its numbers"
    ]


def test_a_tracker_that_hangs_holds_up_neither_training_nor_its_end(log_lines: list[str]) -> None:
    never = threading.Event()
    hanging = Tracker("wandb", lambda: Sink(lambda *_: bool(never.wait()) and None, _quiet, _quiet))
    for step in range(1000):
        hanging.send(step, {"loss": 1.0})
    hanging.close(seconds=0.05)
    assert log_lines == ["wandb did not finish within 0 s; its last numbers may be missing"]
    never.set()


def test_an_interrupt_of_the_main_thread_cannot_leave_tensorboard_half_way(write_recipe, tmp_path) -> None:
    recipe = load_recipe(write_recipe(train__report_to=["tensorboard"]))
    trackers = open_trackers(RunFolder(tmp_path), recipe, 0)
    names = {thread.name for thread in threading.enumerate()}
    assert "llmcls tensorboard" in names
    close_all(trackers)
    assert list((tmp_path / "logs").glob("events.*"))


def test_logs_that_cannot_be_written_do_not_end_a_training(write_recipe, monkeypatch, log_lines) -> None:
    from torch.utils import tensorboard

    class Broken:
        def __init__(self, *_: Any, **__: Any) -> None:
            raise PermissionError(13, "Permission denied", "logs")

    monkeypatch.setattr(tensorboard, "SummaryWriter", Broken)
    run = train(write_recipe(train__max_steps=2, train__report_to=["tensorboard"])) / "run_0"
    assert read_json(run / "metrics.json")["steps"] == 2
    assert [line["step"] for line in read_lines(run / "metrics.jsonl") if line["split"] == "train"] == [2]
    assert len([line for line in log_lines if line.startswith("tensorboard failed")]) == 1


def test_wandb_that_is_not_installed_is_one_sentence(write_recipe, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"train\.report_to names wandb, which is not installed; run `pip install"):
        open_trackers(RunFolder(tmp_path), load_recipe(write_recipe(train__report_to=["wandb"])), 0)


@dataclass(frozen=True)
class Tracked:
    """Two seeds, trained with TensorBoard and wandb; the first was stopped after step 6 of 10 and resumed."""

    folder: Path
    parts: list[list[OfflineRun]]


@pytest.fixture(scope="module")
def tracked(tiny_llama: Path, products: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracked]:
    root = tmp_path_factory.mktemp("tracked")
    values = small_recipe(tiny_llama, products, root / "outputs")
    values["train"] |= {
        "num_train_epochs": 1, "eval_steps": 5, "report_to": ["tensorboard", "wandb"], "wandb_project": "shop",
        "wandb_entity": "team", "tracking_tags": ["night"], "head_learning_rate": 4e-3,
    }  # fmt: skip
    values["exp"] |= {"seeds": [1, 2], "baselines": None}
    recipe = root / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(STOP_AFTER, "6")
        with pytest.raises(SystemExit):
            train(recipe)
    folder = train(recipe)
    files = [sorted((folder / f"run_{i}" / "wandb").glob("offline-run-*/*.wandb")) for i in range(2)]
    yield Tracked(folder, [[read_offline_run(file) for file in of_run] for of_run in files])
    shutil.rmtree(root)


def test_a_stopped_and_resumed_run_is_one_run_of_wandb_and_two_seeds_are_one_group(tracked: Tracked) -> None:
    first, second = tracked.parts
    assert [len(first), len(second)] == [2, 1]
    assert len({part.run.run_id for part in first}) == 1
    assert first[0].run.run_id != second[0].run.run_id
    assert first[0].run.run_id == read_json(tracked.folder / "run_0" / "trackers.json")["wandb"]
    for part in (*first, *second):
        assert (part.run.run_group, part.run.job_type) == ("tiny-llama/products", "train")
        assert (part.run.project, part.run.entity) == ("shop", "team")
        assert list(part.run.tags) == ["tiny-llama", "products", "night"]
    assert [step for step, _ in first[0].series("train/loss")] == [2, 4, 5, 6]
    assert [step for step, _ in first[1].series("train/loss")] == [8, 10]
    assert [part[0].run.display_name for part in (first, second)] == [f"tiny-llama/products/run_{i}" for i in (0, 1)]


def test_wandb_has_the_series_tables_figures_and_the_report(tracked: Tracked) -> None:
    (run,) = tracked.parts[1]
    logged = {name for row in run.history for name in row}
    assert logged >= SERIES
    assert logged >= {f"tables/{name}" for name in TABLES} | {f"figures/{name}" for name in FIGURES}
    folder = next((tracked.folder / "run_1" / "wandb").glob("offline-run-*/files"))
    media = {row[name]["path"] for row in run.history for name in row if name.startswith(("tables/", "figures/"))}
    assert all((folder / path).is_file() for path in media)
    table = read_json(
        folder / next(row["tables/per_class"]["path"] for row in run.history if "tables/per_class" in row)
    )
    assert table["columns"] == [
        "label",
        "train",
        "support",
        "f1",
        "precision",
        "recall",
        "average_precision",
        "threshold",
    ]
    metrics = read_json(tracked.folder / "run_1" / "metrics.json")
    assert {row[0]: row[3] for row in table["data"]} == {n: metrics["test"]["per_class"][n]["f1"] for n in TOPICS}
    lines = read_lines(tracked.folder / "run_1" / "metrics.jsonl")
    for split, name in (("train", "loss"), ("validation", "f1_micro")):
        assert run.series(f"{split}/{name}") == [(x["step"], x[name]) for x in lines if x["split"] == split]
    assert [step for step, _ in run.series("baselines/majority/validation/f1_micro")] == [0, 10]
    assert [a.type for a in run.artifacts if a.type == "report"] == ["report"]
    config = run.config
    assert config["train"]["learning_rate"] == 2e-3
    assert config["exp"]["seeds"] == [2]
    assert config["environment"]["device"] == "cpu"
    (best,) = [m for m in run.metrics if m.name == "validation/f1_micro"]
    assert best.summary.max
    assert "TF-IDF" in run.summary["verdict"]


def test_tensorboard_has_the_same_names(tracked: Tracked) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tracked.folder / "run_0" / "logs"), {"images": 0, "tensors": 0}).Reload()
    tags = events.Tags()
    wandb = {name for part in tracked.parts[0] for row in part.history for name in row}
    assert set(tags["scalars"]) == {n for n in wandb if not n.startswith(("tables/", "figures/", "_"))} - {"step"}
    assert {name.partition("/")[2] for name in tags["images"]} == FIGURES
    shown = {name.removesuffix("/text_summary") for name in tags["tensors"]}
    assert shown >= {f"tables/{name}" for name in TABLES} | {"config/recipe", "config/environment", "verdict"}
    assert "test/precision_recall" in shown
    # Resumed after step 6: every step once.
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4, 5, 6, 8, 10]


def test_texts_of_the_data_stay_here_if_the_recipe_says_so(write_recipe, monkeypatch) -> None:
    from llmcls.training import tracking

    shown: list[Any] = []

    def opened(*_: Any) -> list[Tracker]:
        return [Tracker("board", lambda: Sink(_quiet, lambda step, dashboard: shown.append(dashboard), _quiet))]

    monkeypatch.setattr(tracking, "open_trackers", opened)
    train(write_recipe(train__max_steps=1, train__tracking_texts=False))
    (dashboard,) = shown
    assert "tables/per_class" in dashboard.tables
    assert "tables/mistakes" not in dashboard.tables
    assert dashboard.report is None


def test_a_login_that_is_missing_is_said_before_the_work_and_never_asked_for(
    write_recipe, tmp_path, monkeypatch, log_lines
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    recipe = load_recipe(write_recipe(train__report_to=["wandb"]))
    check_trackers(recipe)
    assert log_lines == [
        "train.report_to names wandb, and nobody is logged in; run `wandb login`, or set WANDB_MODE=offline; training "
        "continues without it"
    ]
    assert open_trackers(RunFolder(tmp_path), recipe, 0) == []
