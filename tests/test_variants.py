"""Every loss, adapter, pooling, truncation and task learns a small set, and so does every variant in 4-bit.

The set: which of three words stand somewhere in a text.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from llmcls.common.user_error import UserError
from tests.helpers import predict, train, write_csv

pytestmark = pytest.mark.slow

SUBJECTS = {"books": "novel", "music": "album", "garden": "rake"}


FILLER = ["delivery", "takes", "three", "days", "returns", "free", "within", "a", "month", "we", "answer", "messages"]


def make_rows(count: int, words: int = 8) -> list[dict[str, str]]:
    """Texts of ``words`` filler words, in which each subject stands or does not, anywhere."""
    rng = random.Random(0)
    rows = []
    for i in range(count):
        labels = [name for name in SUBJECTS if rng.random() < 0.4]
        text = [rng.choice(FILLER) for _ in range(words)]
        for name in labels:
            text.insert(rng.randrange(len(text) + 1), SUBJECTS[name])
        rows.append(
            {
                "uid": str(i), "text": " ".join(text), **{n: str(int(n in labels)) for n in SUBJECTS},
                "tags": "|".join(f"shop/{n}" for n in labels), "kind": labels[0] if labels else "none",
            }
        )  # fmt: skip
    return rows


@pytest.fixture
def learn(write_recipe, tmp_path: Path) -> Any:
    """Train on the set and return the metrics on that very set, and the run's folder."""

    def learning(words: int = 8, **changes: Any) -> tuple[dict[str, Any], Path]:
        path = write_csv(tmp_path / "set.csv", make_rows(48, words))
        values = {
            "data__text_fields": ["text"], "data__label_columns": list(SUBJECTS), "data__train_csv": str(path),
            "data__val_csv": None, "data__test_csv": str(path), "model__lora_r": 8, "model__lora_alpha": 16,
            "model__lora_dropout": 0.0, "model__lora_target_modules": ["all-linear"], "train__num_train_epochs": 60,
            "train__learning_rate": 1e-2, "train__batch_size": 16, "train__gradient_accumulation_steps": 1,
            "train__max_steps": 100, "train__logging_steps": 50, "train__eval_steps": 100,
        }  # fmt: skip
        run = train(write_recipe(**(values | changes))) / "run_0"
        return json.loads((run / "metrics.json").read_text(encoding="utf-8"))["test"], run

    return learning


VARIANTS: dict[str, dict[str, Any]] = {
    "focal": {"train__loss": "focal"},
    "asymmetric": {"train__loss": "asymmetric"},
    "pos_weight": {"train__pos_weight": "balanced"},
    "smoothing": {"train__label_smoothing": 0.1},
    "balanced sampling": {"train__sampling": "balanced"},
    "rslora": {"model__lora_variant": "rslora", "model__lora_alpha": 6},
    "dora": {"model__lora_variant": "dora"},
    "layers": {"model__lora_layers": [-1, 0]},
    "lora+": {"train__lora_plus_ratio": 4.0, "train__learning_rate": 5e-3},
    "head rate and layer decay": {"train__head_learning_rate": 2e-2, "train__layer_decay": 0.9},
    "mean": {"model__pooling": "mean"},
    "attention": {"model__pooling": "attention"},
    "bidirectional": {"model__bidirectional": True, "model__pooling": "mean"},
    "bidirectional last": {"model__bidirectional": True},
    "prompt": {"data__prompt": "{text}\nKeywords ({labels}):"},
    "head and tail": {"data__truncation": "head_tail", "data__max_length": 24},
}


# In tests/distributed/test_engines.py, these train together.
IN_ENGINES = {"focal", "balanced sampling", "head rate and layer decay"}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(changes, id=name, marks=pytest.mark.long if name in IN_ENGINES else ())
        for name, changes in VARIANTS.items()
    ],
)
def test_every_variant_fits_what_it_should(learn, tmp_path: Path, changes: dict[str, Any]) -> None:
    found, run = learn(**changes)
    assert found["f1_micro"] >= 0.95
    predict("--run", run, "--input", tmp_path / "set.csv", "--output", tmp_path / "out.jsonl")
    again = json.loads((tmp_path / "out.metrics.json").read_text(encoding="utf-8"))
    assert again["loss"] == pytest.approx(found["loss"], abs=1e-6)


# Those that change the adapter or what attention sees; the others do not touch the layers that 4 bits change.
BESIDE_4_BIT = {"rslora", "dora", "layers", "attention", "bidirectional"}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(changes, id=name, marks=() if name in BESIDE_4_BIT else pytest.mark.long)
        for name, changes in VARIANTS.items()
    ],
)
def test_every_variant_goes_with_4_bit(learn, changes: dict[str, Any]) -> None:
    found, _ = learn(model__use_4bit=True, **{"train__max_steps": 70} | changes)
    assert found["f1_micro"] >= 0.8


@pytest.mark.parametrize(
    ("pooling", "packing"),
    [
        pytest.param("mean", None, id="mean-packed"),
        pytest.param("max", False, id="max-padded"),
        pytest.param("mean", False, id="mean-padded", marks=pytest.mark.long),
        pytest.param("max", None, id="max-packed", marks=pytest.mark.long),
    ],
)
def test_long_texts_are_read_in_windows(learn, tmp_path: Path, pooling: str, packing: bool | None) -> None:
    changes = {"data__max_length": 24, "data__window_overlap": 4, "train__packing": packing}
    changes |= {"train__num_train_epochs": 100, "train__max_steps": 120}
    found, run = learn(words=40, data__truncation="windows", data__window_pooling=pooling, **changes)
    assert found["f1_micro"] >= 0.95
    predict("--run", run, "--input", tmp_path / "set.csv", "--output", tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.metrics.json").read_text(encoding="utf-8"))["loss"] == pytest.approx(
        found["loss"], abs=1e-6
    )


TASKS: dict[str, dict[str, Any]] = {
    "single-label": {"data__label_columns": ["kind"], "model__problem_type": "single_label_classification"},
    "single-label, focal, weighted": {
        "data__label_columns": ["kind"], "model__problem_type": "single_label_classification",
        "train__loss": "focal", "train__pos_weight": "balanced", "train__label_smoothing": 0.05,
    },
    "binary": {"data__label_columns": ["books"], "model__problem_type": "binary_classification"},
    "delimited paths": {
        "data__label_columns": ["tags"], "data__label_separator": "|", "data__hierarchy_separator": "/",
    },
}  # fmt: skip


@pytest.mark.parametrize("changes", TASKS.values(), ids=TASKS)
def test_every_task_fits_what_it_should(learn, changes: dict[str, Any]) -> None:
    found, run = learn(**changes)
    assert found["accuracy"] >= 0.9
    line = json.loads((run / "predictions_test.jsonl").read_text(encoding="utf-8").splitlines()[0])
    if "data__label_separator" in changes:
        assert list(line["probabilities"]) == ["shop", "shop/books", "shop/garden", "shop/music"]


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_full_fine_tuning_keeps_its_pooling(learn, tmp_path: Path, pooling: str) -> None:
    found, run = learn(model__lora_r=0, model__pooling=pooling, train__learning_rate=3e-3)
    assert found["f1_micro"] >= 0.95
    predict("--run", run, "--input", tmp_path / "set.csv", "--output", tmp_path / "out.jsonl")
    again = json.loads((tmp_path / "out.metrics.json").read_text(encoding="utf-8"))
    assert again["loss"] == pytest.approx(found["loss"], abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model__lora_r": 0, "model__lora_variant": "dora"}, "model.lora_variant needs an adapter"),
        ({"model__lora_r": 0, "train__lora_plus_ratio": 4.0}, "train.lora_plus_ratio needs an adapter"),
        ({"model__lora_layers": [7]}, r"model.lora_layers is \[7\]; the layers are 0 to 1"),
        ({"model__bidirectional": True, "train__packing": False}, "model.bidirectional needs packed micro-batches"),
        ({"train__loss": "asymmetric", "model__problem_type": "single_label_classification",
          "data__label_columns": ["kind"]}, "train.loss is for multi_label"),
        ({"data__truncation": "windows", "data__window_overlap": 64}, "data.window_overlap is 64; it must be below"),
        ({"data__prompt": "no place"}, "data.prompt must contain {text}, where the text"),
        ({"train__threshold_metric": "accuracy"}, "train.threshold_metric is 'accuracy'; it must be f1"),
        ({"train__calibration": "temperature"}, "train.calibration is temperature, which needs data.val_csv"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(learn, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        learn(**changes)
