"""Each profile's real engine on two real processes, over gloo: sharding, loss curves, evaluation, checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from llmcls.common.signals import STOP_AFTER, Interrupted
from llmcls.engine.accelerator import REHEARSAL
from llmcls.predict import main as predict
from llmcls.recipe.load import load_recipe
from llmcls.train import train_seeds
from tests.distributed.trouble import trouble
from tests.helpers import ROOT, TOPICS, read_rows, write_csv

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")

FOUR_BIT = ["use_4bit=true"]
# Profile, overrides, what must be smaller than the whole on each rank.
ENGINES = {
    "ddp": ("ddp", [], []),
    "fsdp": ("fsdp", [], ["weights", "optimizer_state"]),
    "fsdp-4bit": ("fsdp_qlora", FOUR_BIT, ["weights", "optimizer_state"]),
    "fsdp-4bit-more": ("fsdp_qlora", FOUR_BIT, ["weights", "optimizer_state"]),
    "zero2": ("zero2", [], ["optimizer_state"]),
    "zero2-4bit": ("zero2", FOUR_BIT, ["optimizer_state"]),
    "zero2-more": ("zero2", [], ["optimizer_state"]),
    "zero3": ("zero3", [], ["weights", "optimizer_state"]),
    "zero3-more": ("zero3", [], ["weights", "optimizer_state"]),
}
# 160 training rows, 16 a step: 10 steps an epoch. The run is cut in the middle of its second epoch.
CUT = 13
# Runs that some engines do as well, in the same launch, because starting processes costs more than 20 steps.
SKEWED, BF16, FULL = ["micro_batch_tokens=64"], ["torch_dtype=bfloat16"], ["lora_r=0", "learning_rate=1e-3"]
# Several parameter groups, a head with a part of its own, windows: what an engine may stumble over.
VARIANTS = [
    "pooling=attention", "bidirectional=true", "lora_plus_ratio=4.0", "layer_decay=0.9", "head_learning_rate=1e-3",
    "head_init=random", "truncation=windows", "window_overlap=8", "max_length=32", "loss=focal", "pos_weight=balanced",
    "sampling=balanced", "calibration=temperature",
]  # fmt: skip
# Probabilities of classes, with weights: the mean of a step counts the rows of all ranks by them.
SOFT = [
    "problem_type=single_label_classification", "label_columns=[kind]", "soft_labels=true", "head_init=random",
    "pos_weight={books: 4, music: 0.5}", "val_csv=null", "test_csv=null", "train_metrics_rows=0", "num_train_epochs=1",
]  # fmt: skip
MORE_RUNS = {
    "ddp": {"soft": SOFT},
    "fsdp": {"skewed": SKEWED, "full": FULL, "bf16": BF16, "soft": SOFT},
    "zero2": {"variants": VARIANTS},
    "zero2-more": {"bf16": BF16, "soft": SOFT},
    "zero3-more": {"full": FULL, "skewed": SKEWED, "soft": SOFT},
}
# With 4-bit weights, FSDP resumes as without them.
WHOLE_ONLY = {"fsdp-4bit"}
# A step in which the last rank has no loss, and a death between two evaluations.
TROUBLED = ["max_steps=8", "save_minutes=1e-6"]


@dataclass
class Trained:
    """Folders of what one engine trained on two processes: see the plan in `on_engine`, and `MORE_RUNS`.

    An engine of `WHOLE_ONLY` has the first of them alone.
    """

    whole: Path
    half: Path
    from_one: Path
    troubled: Path
    more: dict[str, Path]
    reports: Path

    def shards(self, run: Path) -> list[dict[str, float]]:
        """What each rank held of a run's model and optimizer."""
        return [json.loads((self.reports / f"{run.parent.name}-rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def recipe(tiny_llama: Path, products: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 rows, 61 to test: odd, and divisible by no batch used. 20 optimizer steps."""
    folder = tmp_path_factory.mktemp("engines")
    values = {
        "data": {
            "dataset_name": "products", "id_column": "uid", "text_fields": ["title", "description"],
            "max_length": 64, "train_csv": str(products / "train.csv"), "val_csv": str(products / "validation.csv"),
            "test_csv": str(products / "test.csv"), "label_columns": TOPICS,
        },
        "model": {
            "model_name": str(tiny_llama), "torch_dtype": "float32", "lora_r": 4, "lora_alpha": 8,
            "lora_dropout": 0.0, "lora_target_modules": ["q_proj", "v_proj", "up_proj"], "head_init": "probe",
        },
        "train": {
            "batch_size": 4, "gradient_accumulation_steps": 2, "num_train_epochs": 2, "learning_rate": 5e-3,
            "logging_steps": 1, "report_to": [], "optim_8bit_when_4bit": False,
        },
        "exp": {"output_root": str(folder / "outputs"), "seeds": [1], "baselines": False},
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def run_folder(recipe: Path, name: str) -> Path:
    return recipe.parent / "outputs" / "tiny-llama" / "products" / name / "run_0"


def train_here(recipe: Path, *overrides: str, stop_after: int = -1) -> None:
    """Train on one plain process, this one."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ[STOP_AFTER] = str(stop_after)
    try:
        train_seeds(load_recipe(recipe, list(overrides)), Accelerator(cpu=True))
        assert stop_after < 0
    except Interrupted:
        assert stop_after > 0
    finally:
        del os.environ[STOP_AFTER]


@pytest.fixture(scope="module")
def alone(recipe: Path) -> Callable[..., Path]:
    """A run on one process with as many samples a step: whole, or cut short."""
    made: dict[str, Path] = {}

    def get(overrides: list[str], cut: bool = False) -> Path:
        kind = "".join("-" + override.partition("=")[0] for override in overrides)[:60] + ("-cut" if cut else "")
        if kind not in made:
            # The whole run has the model's own modules, so every engine's fused kernels are compared with them. The
            # run that the engines resume has the kernels that they have.
            changed = ["gradient_accumulation_steps=4", f"kernels={'auto' if cut else 'off'}"]
            changed.append(f"exp.run_name=alone{kind}")
            train_here(recipe, *changed, *overrides, stop_after=CUT if cut else -1)
            made[kind] = run_folder(recipe, f"alone{kind}")
        return made[kind]

    return get


@pytest.fixture(scope="module")
def skewed(recipe: Path, products: Path) -> list[str]:
    """One text in ten is twenty times as long as the others; a micro-batch holds one of them, or all the others."""
    rows = read_rows(products / "train.csv")
    for i, row in enumerate(rows):
        row["description"] = row["description"] * 3 if i % 10 == 0 else row["title"][:8]
    return [f"train_csv={write_csv(recipe.parent / 'skewed.csv', rows)}", *SKEWED]


@pytest.fixture(scope="module")
def soft(recipe: Path, products: Path) -> list[str]:
    """Each text has probabilities of three classes, in one column."""
    rows = read_rows(products / "train.csv")
    for i, row in enumerate(rows):
        share = (i % 7) / 10
        row["kind"] = json.dumps({"books": share, "music": 0.9 - share, "other": 0.1}) if i % 3 else "books"
    return [f"train_csv={write_csv(recipe.parent / 'soft.csv', rows)}", *SOFT]


@pytest.fixture(scope="module")
def on_engine(recipe: Path, alone, skewed: list[str], soft: list[str], tmp_path_factory) -> Callable[[str], Trained]:
    """All runs of one engine, by two processes in one launch."""
    made: dict[str, Trained] = {}

    def get(name: str) -> Trained:
        if name not in made:
            profile, overrides, _ = ENGINES[name]
            from_one = run_folder(recipe, f"{name}-from-one")
            more = MORE_RUNS.get(name, {})
            more = {kind: {"skewed": skewed, "soft": soft}.get(kind, changed) for kind, changed in more.items()}
            plan = [{"overrides": [f"exp.run_name={name}-whole"], "stop_after": None}]
            if name not in WHOLE_ONLY:
                shutil.copytree(alone(overrides, cut=True).parent, from_one.parent)
                plan.append({"overrides": [f"exp.run_name={name}-half"], "stop_after": CUT})
                resumed = [f"exp.run_name={name}-from-one", "gradient_accumulation_steps=4"]
                plan.append({"overrides": resumed, "stop_after": None})
                troubled = [f"exp.run_name={name}-troubled", *TROUBLED]
                plan += [{"overrides": troubled, "broken": 2, "dies": dies, "stop_after": None} for dies in (5, None)]
            for kind, changed in more.items():
                # The run of variants is also cut short and resumed.
                for stop_after in (CUT, None) if kind == "variants" else (None,):
                    plan.append({"overrides": [f"exp.run_name={name}-{kind}", *changed], "stop_after": stop_after})
            reports = tmp_path_factory.mktemp("reports")
            launch(recipe, profile, overrides, plan, reports)
            made[name] = Trained(
                run_folder(recipe, f"{name}-whole"),
                run_folder(recipe, f"{name}-half"),
                from_one,
                run_folder(recipe, f"{name}-troubled"),
                {kind: run_folder(recipe, f"{name}-{kind}") for kind in more},
                reports,
            )
        return made[name]

    return get


# Others cover these in part: ZeRO-2 and 4-bit weights are each tested with another partner, and DDP by
# tests/distributed/test_cpu_processes.py.
LONG = {"ddp", "fsdp-4bit-more", "zero2-4bit", "zero2-more", "zero3-more"}


def engines(*without: str) -> list[Any]:
    return [pytest.param(n, marks=pytest.mark.long) if n in LONG else n for n in ENGINES if n not in without]


@pytest.fixture(scope="module", params=engines())
def trained(request, on_engine) -> tuple[str, Trained]:
    """An engine's name and its runs."""
    return request.param, on_engine(request.param)


@pytest.fixture(scope="module", params=engines(*WHOLE_ONLY))
def trained_twice(request, on_engine) -> tuple[str, Trained]:
    """The same for engines that also resumed runs."""
    return request.param, on_engine(request.param)


def launch(recipe: Path, profile: str, overrides: list[str], plan: list[dict], reports: Path) -> None:
    plan_file = reports / "plan.json"
    plan_file.write_text(json.dumps(plan))
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", f"accel_configs/{profile}.yaml", "--num_processes", "2", "--main_process_port", "0"]
    command += ["-m", "tests.distributed.engine_worker", str(recipe), str(plan_file), str(reports), *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1", REHEARSAL: "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=480)
    assert done.returncode == 0, done.stderr[-6000:]


def losses(run: Path, steps: int = 20) -> list[float]:
    """The training loss of each optimizer step; a step logged again after a resume counts once."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open(encoding="utf-8")]
    by_step = {line["step"]: line["loss"] for line in lines if line["split"] == "train"}
    assert sorted(by_step) == list(range(1, steps + 1))
    return list(dict(sorted(by_step.items())).values())


def probabilities(path: Path) -> dict[str, list[float]]:
    """By id, in the file's order."""
    lines = [json.loads(line) for line in path.open(encoding="utf-8")]
    found = {line["id"]: list(line["probabilities"].values()) for line in lines}
    assert len(found) == len(lines)
    return found


def test_each_rank_holds_a_part(trained) -> None:
    name, runs = trained
    reports = runs.shards(runs.whole)
    for report in reports:
        assert report["processes"] == 2
        assert report["engine"] == {"d": "multi_cpu", "f": "fsdp", "z": "deepspeed"}[name[0]]
        for kind in ("weights", "optimizer_state"):
            held, whole = report[kind], report[f"{kind}_total"]
            if kind in ENGINES[name][2]:
                assert held < 0.6 * whole
            else:
                assert held == whole
    held = [report["optimizer_state"] for report in reports]
    assert sum(held) >= reports[0]["optimizer_state_total"]


def test_the_loss_curve_is_that_of_one_process(trained, alone) -> None:
    name, runs = trained
    one = alone(ENGINES[name][1])
    assert losses(runs.whole) == pytest.approx(losses(one), rel=1e-4)
    # The probe that the head starts from has done the first part of the way from log 2.
    assert losses(one)[0] < 0.3
    assert max(losses(one)) > 1.2 * min(losses(one)), "equal curves say something only if they move"


def test_it_is_that_of_texts_taken_one_by_one(trained_twice, alone) -> None:
    # The engines run packed; a budget of one token leaves every text alone, and padding has nothing to pad.
    name, runs = trained_twice
    one_by_one = alone([*ENGINES[name][1], "packing=false", "micro_batch_tokens=1"])
    # The probe that the head starts from is fitted up to a tolerance, from states that are rounded in another order.
    assert losses(runs.whole) == pytest.approx(losses(one_by_one), rel=1e-3)


def test_evaluation_counts_every_row_once(trained, products: Path) -> None:
    _, runs = trained
    for split, rows in (("validation", 40), ("test", 61)):
        ids = [row["uid"] for row in read_rows(products / f"{split}.csv")]
        assert len(ids) == rows
        assert list(probabilities(runs.whole / f"predictions_{split}.jsonl")) == ids
        per_class = json.loads((runs.whole / "metrics.json").read_text())[split]["per_class"]
        real = [sum(row[topic] == "1" for row in read_rows(products / f"{split}.csv")) for topic in TOPICS]
        assert [per_class[topic]["support"] for topic in TOPICS] == real


def test_one_plain_process_predicts_what_the_engine_evaluated(trained, products: Path, tmp_path: Path) -> None:
    _, runs = trained
    output = tmp_path / "predictions.jsonl"
    predict(["--run", str(runs.whole), "--input", str(products / "test.csv"), "--output", str(output)])
    plain, engine = probabilities(output), probabilities(runs.whole / "predictions_test.jsonl")
    assert list(plain) == list(engine)
    for row in plain:
        assert plain[row] == pytest.approx(engine[row], abs=1e-5)


def test_the_checkpoint_of_an_evaluation_is_that_of_one_process(trained, alone) -> None:
    # After an evaluation, an engine may still hold whole weights that its optimizer does not know.
    name, runs = trained
    found, expected = (
        torch.load(run / "checkpoints" / "last" / "optimizer.pt", weights_only=True)["optimizer"]
        for run in (runs.whole, alone(ENGINES[name][1]))
    )
    assert found.keys() == expected.keys()
    for parameter, state in expected.items():
        assert found[parameter].keys() == state.keys() == {"step", "exp_avg", "exp_avg_sq"}, parameter
        assert float(found[parameter]["step"]) == float(state["step"]) == 20
        scale = float(state["exp_avg"].abs().max())
        torch.testing.assert_close(found[parameter]["exp_avg"], state["exp_avg"], rtol=1e-2, atol=1e-2 * scale)


def test_a_checkpoint_of_two_processes_resumes_with_one(trained_twice, recipe: Path) -> None:
    name, runs = trained_twice
    assert not (runs.half / "metrics.json").exists()
    train_here(recipe, f"exp.run_name={name}-half", *ENGINES[name][1])
    assert losses(runs.half) == pytest.approx(losses(runs.whole), rel=1e-4)
    assert json.loads((runs.half / "environment.json").read_text())["processes"] == 1


def test_a_checkpoint_of_one_process_resumes_with_two(trained_twice, alone) -> None:
    name, runs = trained_twice
    assert losses(runs.from_one) == pytest.approx(losses(alone(ENGINES[name][1])), rel=1e-4)
    assert json.loads((runs.from_one / "environment.json").read_text())["processes"] == 2


def test_a_broken_step_is_left_out_and_a_death_between_evaluations_loses_little(trained_twice, recipe: Path) -> None:
    name, runs = trained_twice
    overrides = ENGINES[name][1]
    alone = f"alone-troubled{'-4bit' if overrides else ''}"
    with trouble(2, None):
        # With a run that is there already, this does nothing.
        train_here(recipe, f"exp.run_name={alone}", "gradient_accumulation_steps=4", *TROUBLED, *overrides)
    curves = []
    for run in (runs.troubled, run_folder(recipe, alone)):
        assert json.loads((run / "checkpoints/last/progress.json").read_text())["skipped_steps"] == 1
        lines = [json.loads(line) for line in (run / "metrics.jsonl").open(encoding="utf-8")]
        curves.append({x["step"]: (x["loss"], x["gradient_norm"]) for x in lines if x["split"] == "train"})
    assert list(curves[0]) == list(curves[1]) == [1, 2, 4, 5, 6, 7, 8]
    for step, found in curves[0].items():
        assert found == pytest.approx(curves[1][step], rel=1e-3), step
    # It died before the sixth step, with no evaluation before, and did not take the third step again.
    log = (runs.troubled / "log.txt").read_text(encoding="utf-8")
    assert log.count("step 3: the gradient is not a number, so the step is left out (1 of at most 10)") == 1


@pytest.mark.parametrize("engine", ["fsdp", pytest.param("zero3-more", marks=pytest.mark.long)])
def test_ranks_with_very_unlike_texts_stay_in_step(engine: str, on_engine, alone, skewed: list[str]) -> None:
    assert losses(on_engine(engine).more["skewed"]) == pytest.approx(losses(alone(skewed)), rel=1e-4)


@pytest.mark.parametrize(
    "engine", ["fsdp", *(pytest.param(name, marks=pytest.mark.long) for name in ("ddp", "zero2-more", "zero3-more"))]
)
def test_soft_labels_and_weights_of_classes_train_as_in_one_process(engine, on_engine, alone, soft: list[str]) -> None:
    found = losses(on_engine(engine).more["soft"], steps=10)
    assert found == pytest.approx(losses(alone(soft), steps=10), rel=1e-4)
    assert max(found) > 1.1 * min(found)


def test_variants_with_several_learning_rates_and_pooling_of_their_own_run_sharded(
    on_engine, alone, products: Path, tmp_path: Path
) -> None:
    run = on_engine("zero2").more["variants"]
    assert losses(run) == pytest.approx(losses(alone(VARIANTS)), rel=1e-3)
    output = tmp_path / "predictions.jsonl"
    predict(["--run", str(run), "--input", str(products / "test.csv"), "--output", str(output)])
    plain, engine = probabilities(output), probabilities(run / "predictions_test.jsonl")
    assert len(plain) == 61
    for row in plain:
        assert plain[row] == pytest.approx(engine[row], abs=1e-5)


@pytest.mark.parametrize("engine", ["fsdp", pytest.param("zero2-more", marks=pytest.mark.long)])
def test_bfloat16_stays_within_two_percent_of_one_process(engine: str, on_engine, alone) -> None:
    # bf16 keeps eight bits, and each engine rounds at other places: sums over ranks, norms, the head.
    assert losses(on_engine(engine).more["bf16"]) == pytest.approx(losses(alone(BF16)), rel=2e-2)


@pytest.mark.parametrize("engine", ["fsdp", pytest.param("zero3-more", marks=pytest.mark.long)])
def test_full_fine_tuning_is_sharded_too(engine: str, on_engine, alone) -> None:
    runs = on_engine(engine)
    assert losses(runs.more["full"]) == pytest.approx(losses(alone(FULL)), rel=1e-4)
    for report in runs.shards(runs.more["full"]):
        assert report["weights"] < 0.6 * report["weights_total"]
        assert report["optimizer_state"] < 0.6 * report["optimizer_state_total"]
