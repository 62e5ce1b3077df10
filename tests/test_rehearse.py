from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForSequenceClassification, LlamaConfig

from llmcls.common.user_error import UserError
from llmcls.data.tables import read_table
from llmcls.engine.profiles import sharding_of
from llmcls.model.memory import Shape, estimate, guessed_shape, memory_lines, shape_of
from llmcls.model.shrink import shrink
from llmcls.recipe.load import load_recipe
from llmcls.rehearsal.miniature import ROWS, make_miniature
from llmcls.rehearse import main
from tests.helpers import ROOT, TOPICS, read_rows, write_csv


def test_a_rehearsal_proves_a_sharded_four_bit_profile(write_recipe) -> None:
    recipe = write_recipe(model__use_4bit=True, train__optim_8bit_when_4bit=False)
    command = [sys.executable, "-m", "llmcls.rehearse", str(recipe), "--profile", "fsdp_qlora", "--processes", "2"]
    done = subprocess.run([*command, "--steps", "4"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    proofs = [line.split("proved", 1)[1].strip() for line in done.stdout.splitlines() if line.startswith("  proved")]
    assert proofs[0].startswith("fsdp x 2, weights in 4-bit: 4 optimizer steps, loss ")
    held, whole = (int(word.replace(",", "")) for word in (proofs[1].split()[3], proofs[1].split()[5]))
    assert held < 0.6 * whole
    assert "evaluation scored each of 53 test rows once, in order" in proofs
    assert any(p.startswith("stopped after step 2, resumed: same loss curve as the uninterrupted run") for p in proofs)
    assert any(p.startswith("a single process predicts 53 rows") for p in proofs)
    assert "stand-in" not in done.stdout
    assert "GiB on each GPU" in done.stdout


def test_variants_with_several_learning_rates_and_pooling_of_their_own_run_sharded(write_recipe) -> None:
    # Several parameter groups, a head with a part of its own, windows: what an engine may stumble over.
    recipe = write_recipe(
        model__pooling="attention",
        model__bidirectional=True,
        train__lora_plus_ratio=4.0,
        train__layer_decay=0.9,
        train__head_learning_rate=1e-3,
        data__truncation="windows",
        data__window_overlap=8,
        train__loss="focal",
        train__pos_weight="balanced",
        train__sampling="balanced",
        train__calibration="temperature",
    )
    command = [sys.executable, "-m", "llmcls.rehearse", str(recipe), "--profile", "zero2", "--processes", "2"]
    done = subprocess.run([*command, "--steps", "2"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "same loss curve as the uninterrupted run" in done.stdout
    assert "a single process predicts 53 rows" in done.stdout


def test_the_miniature_keeps_names_groups_and_files(write_recipe, tmp_path: Path, products: Path) -> None:
    recipe = load_recipe(write_recipe())
    mini = make_miniature(recipe, tmp_path / "mini", steps=4)
    assert mini.stand_ins == []
    again = load_recipe(mini.path)
    assert again.model.lora_target_modules == ["q_proj", "v_proj"]
    real, small = (
        AutoConfig.from_pretrained(recipe.model.model_name),
        AutoConfig.from_pretrained(again.model.model_name),
    )
    assert small.model_type == real.model_type
    assert small.hidden_size < real.hidden_size
    # The tiny Llama has six query heads on two key heads; the miniature's are grouped too.
    assert small.num_key_value_heads < small.num_attention_heads
    known = {row["uid"]: row["title"] for row in read_rows(products / "train.csv")}
    sample = read_rows(Path(again.data.train_csv))
    assert len(sample) == ROWS["train"]
    assert all(known[row["uid"]] == row["title"] for row in sample)


def test_the_miniature_has_every_label_of_a_delimited_column(write_recipe, tmp_path: Path) -> None:
    rows = [{"uid": str(i), "text": f"text {i}", "tags": f"a|l{i % 150}"} for i in range(600)]
    path = write_csv(tmp_path / "tags.csv", rows)
    recipe = load_recipe(
        write_recipe(
            data__train_csv=str(path),
            data__val_csv=str(path),
            data__test_csv=None,
            data__text_fields=["text"],
            data__label_columns=["tags"],
            data__label_separator="|",
            model__lora_layers=[1],
        )
    )
    mini = make_miniature(recipe, tmp_path / "mini", steps=2)
    tags = {tag for row in read_rows(Path(mini.recipe.data.train_csv)) for tag in row["tags"].split("|")}
    assert len(tags) == 151
    assert mini.recipe.model.lora_layers == [-1]


@pytest.mark.parametrize("kind", ["bert", "gpt2", "qwen3", "gemma2", "modernbert"])
def test_architectures_shrink_and_run(kind: str) -> None:
    import torch

    config = shrink(AutoConfig.for_model(kind, vocab_size=1000, pad_token_id=0))
    model = AutoModelForSequenceClassification.from_config(config)
    assert sum(p.numel() for p in model.parameters()) < 2e6
    assert model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape == (1, 2)


@pytest.mark.parametrize(
    "changes, targets",
    [
        ({"model__model_name": "nobody/Llama-3B"}, ["q_proj", "v_proj"]),
        ({"model__model_name": "nobody/bert", "model__lora_target_modules": ["query", "dense"]}, ["query", "dense"]),
        ({"model__model_name": "nobody/odd", "model__lora_target_modules": ["Wqkv"]}, ["all-linear"]),
    ],
)
def test_what_is_out_of_reach_is_stood_in_for_and_said(write_recipe, tmp_path: Path, changes, targets) -> None:
    recipe = load_recipe(write_recipe(data__train_csv="not/there.csv", **changes))
    mini = make_miniature(recipe, tmp_path / "mini", steps=2)
    assert mini.recipe.model.lora_target_modules == targets
    assert "generated rows replace not/there.csv" in mini.stand_ins[0]
    assert f"replaces {recipe.model.model_name}, which cannot be loaded" in mini.stand_ins[1]
    table = read_table(mini.recipe.data.train_csv)
    assert table.column_names == ["uid", "title", "description", *TOPICS]


def test_every_class_is_in_the_sample(write_recipe, tmp_path: Path) -> None:
    names = [*(f"c{i % 3}" for i in range(400)), "rare"]
    rows = [{"uid": i, "title": f"text {i}", "kind": name} for i, name in enumerate(names)]
    path = str(write_csv(tmp_path / "classes.csv", rows))
    recipe = load_recipe(
        write_recipe(
            data__train_csv=path,
            data__val_csv=path,
            data__test_csv=path,
            data__text_fields=["title"],
            data__label_columns=["kind"],
            model__problem_type="single_label_classification",
        )
    )
    mini = make_miniature(recipe, tmp_path / "mini", steps=2)
    assert {row["kind"] for row in read_rows(Path(mini.recipe.data.train_csv))} == {"c0", "c1", "c2", "rare"}


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--profile", "fspd"], "--profile: no profile 'fspd'; known are cpu, ddp"),
        (["--profile", "laptop_4bit", "--processes", "2"], "is for one process; set --processes 1"),
        (["--profile", "ddp", "--steps", "1"], "--steps must be at least 2"),
    ],
)
def test_a_mistake_is_one_sentence(write_recipe, monkeypatch, arguments: list[str], sentence: str) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=sentence):
        main([str(write_recipe()), *arguments])


def test_memory_follows_the_formula(write_recipe) -> None:
    recipe = load_recipe(write_recipe(), ["torch_dtype=bfloat16", "batch_size=1", "max_length=1024", "lora_r=8"])
    shape, gib = Shape(layers=10, hidden=1024, linear=1e9, other=1e8, adapted=1e5), 2.0**30
    found = estimate(shape, recipe, "none", 4)
    trained = 8 * 1e5
    assert found.weights == pytest.approx((2 * 1.1e9 + 4 * trained) / gib)
    assert found.optimizer == pytest.approx(12 * trained / gib)
    assert found.activations == pytest.approx(10 * 34 * 1024 * 1024 / gib)
    assert found.total == pytest.approx(found.weights + found.optimizer + found.activations + 1)
    assert estimate(shape, recipe, "optimizer_state", 4).optimizer == pytest.approx(found.optimizer / 4)
    assert estimate(shape, recipe, "all", 4).weights == pytest.approx(found.weights / 4 + 2 * 2 * 1e8 / gib)
    recipe.model.use_4bit = True
    four_bit = estimate(shape, recipe, "none", 1)
    assert four_bit.weights == pytest.approx((1e9 * 4.127 / 8 + 2e8 + 4 * trained) / gib)
    assert four_bit.optimizer == pytest.approx(6 * trained / gib)
    assert four_bit.activations < found.activations / 5


def test_shapes_are_counted_and_guessed(write_recipe) -> None:
    one_billion = LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        head_dim=64,
        num_key_value_heads=8,
        vocab_size=128256,
    )
    recipe = load_recipe(write_recipe())
    shape = shape_of(one_billion, recipe)
    assert shape.linear == 973_078_528
    assert shape.adapted == 16 * (2048 + 2048 + 2048 + 512)
    guess = guessed_shape(1.0)
    assert 0.7 < guess.linear / shape.linear < 1.4
    assert 0.8 < guess.hidden / shape.hidden < 1.25
    lines = memory_lines(recipe, one_billion, "all", 4)
    assert "4 GPU(s), sharded: all" in lines[0]
    recipe.model.model_name = "nobody/unknown"
    assert memory_lines(recipe, None, "none", 1)[0].startswith("no estimate")


def test_profiles_say_what_they_shard() -> None:
    import yaml

    found = {p.stem: sharding_of(yaml.safe_load(p.read_text())) for p in (ROOT / "accel_configs").glob("*.yaml")}
    assert found == {
        "cpu": "none", "laptop_4bit": "none", "ddp": "none", "zero2": "optimizer_state", "zero3": "all", "fsdp": "all",
        "fsdp_qlora": "all",
    }  # fmt: skip
