from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from llmcls.common.signals import STOP_AFTER
from llmcls.common.user_error import UserError
from llmcls.evaluation.scoring import score_split
from llmcls.train import main
from llmcls.training import warm_start as module
from llmcls.training.warm_start import label_split
from tests.helpers import train

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "overrides",
    [
        ["pooling=last"],
        ["pooling=mean", "bidirectional=true"],
        ["pooling=attention"],
        ["use_4bit=true"],
        ["lora_r=0", "torch_dtype=bfloat16"],
        ["truncation=windows", "max_length=24", "window_overlap=4"],
    ],
    ids=lambda o: ",".join(o),
)
def test_training_starts_with_the_loss_of_the_probe(start, overrides: list[str]) -> None:
    cold = start(*overrides)
    before = cold.loss()
    assert start(*overrides, "head_init=probe").warm().loss() < before - 0.2


def test_an_encoder_starts_from_the_probe_too(start, tiny_bert: Path) -> None:
    encoder = {"model__model_name": str(tiny_bert), "model__lora_target_modules": ["query", "value"]}
    cold, warm = start(**encoder), start("head_init=probe", **encoder).warm()
    assert warm.loss() < cold.loss() - 0.1


def test_two_classes_start_from_the_probe_too(start) -> None:
    binary = {"data__label_columns": ["books"], "model__problem_type": "binary_classification"}
    cold, warm = start(**binary), start("head_init=probe", **binary).warm()
    assert warm.loss() < cold.loss() - 0.1


def test_the_words_of_the_labels_are_read_as_the_texts_are(start) -> None:
    words = {"books": "novels and poems"}
    begun = start("head_init=label_text", data__label_descriptions=words, data__prompt="Topic of: {text}")
    split = label_split(begun.setup.recipe, begun.inputs)
    read = [begun.inputs.tokenizer.decode(tokens) for tokens in split.tokens]
    assert read[:2] == ["<|begin_of_text|>Topic of: books: novels and poems", "<|begin_of_text|>Topic of: music"]
    before = begun.loss()
    assert begun.warm().loss() < before - 0.1, "the labels' frequencies are known"


def test_random_weights_stay_and_the_generator_is_where_it_was(start) -> None:
    for overrides in (["exp.baselines=false"], ["exp.baselines=true"]):
        begun = start(*overrides)
        head, state = begun.head(), torch.get_rng_state()
        begun.warm()
        assert np.array_equal(begun.head(), head)
        assert torch.equal(torch.get_rng_state(), state)
    assert set(begun.setup.folder.experiment.baselines.read()) == {"probe"}


def test_seeds_share_one_probe_and_another_pooling_has_its_own(start, monkeypatch) -> None:
    fits: list[int] = []
    real = module.fit_probe
    monkeypatch.setattr(module, "fit_probe", lambda *a: fits.append(1) or real(*a))
    first, second = start("head_init=probe").warm(), start("head_init=probe", seed=2).warm()
    assert fits == [1]
    assert np.array_equal(first.head(), second.head())
    assert start("head_init=probe", "pooling=mean").warm().setup.folder.experiment.probe.is_file()
    assert fits == [1, 1]


def test_a_resumed_run_keeps_its_head(write_recipe, monkeypatch, log_lines: list[str]) -> None:
    recipe = write_recipe(
        model__head_init="probe", train__max_steps=3, data__test_csv=None, train__train_metrics_rows=0
    )
    monkeypatch.setenv(STOP_AFTER, "1")
    with pytest.raises(SystemExit):
        main([str(recipe)])
    monkeypatch.delenv(STOP_AFTER)
    train(recipe)
    assert sum("the head starts from a linear probe of the frozen model" in line for line in log_lines) == 1


def test_the_probe_is_a_baseline_wherever_the_head_starts_from_it(start, log_lines: list[str]) -> None:
    begun = start("head_init=probe", exp__baselines=None).warm()
    store = begun.setup.folder.experiment.baselines
    measured = store.read()["probe"]
    assert set(measured) == {"validation", "test", "seconds"}
    assert "intervals" in measured["test"]
    # The model with the probe as its head, before any step, is the frozen model with a probe.
    logits = score_split(begun.scorer, begun.inputs.test_split)
    average_precision = measured["test"]["average_precision_macro"]
    decided = store.decisions_on("test")["probe"]
    assert decided.shape == logits.shape
    assert logits[decided].min() > logits[~decided].min()
    assert 0 < average_precision < 1
    assert any(line.startswith("baseline probe") for line in log_lines)


def test_a_probe_that_is_not_worth_its_passes_is_skipped_with_a_reason(start, log_lines: list[str]) -> None:
    start("num_train_epochs=1", exp__baselines=None).warm()
    assert any("skipped: its passes would be a large part of the run" in line for line in log_lines)
    many = start("num_train_epochs=8", exp__baselines=None).warm()
    assert set(many.setup.folder.experiment.baselines.read()) == {"probe"}


def test_auto_is_the_probe_with_many_texts_and_random_with_few(start, monkeypatch, log_lines: list[str]) -> None:
    probe, begun = start("head_init=probe").warm().head(), start("head_init=auto")
    head, rows = begun.head(), len(begun.setup.train_split)
    monkeypatch.setattr(module, "WEIGHTS_PER_TEXT", head.size / rows)
    assert np.array_equal(start("head_init=auto").warm().head(), probe)
    monkeypatch.setattr(module, "WEIGHTS_PER_TEXT", 0.99 * head.size / rows)
    assert np.array_equal(begun.warm().head(), head)
    assert any(
        f"random weights, not from a probe: {rows} texts are too few for its weights" in line for line in log_lines
    )


def test_auto_is_random_where_a_fit_would_take_long(start, monkeypatch, log_lines: list[str]) -> None:
    monkeypatch.setattr(module, "QUICK_FIT", 10)
    begun = start("head_init=auto")
    head = begun.head()
    assert np.array_equal(begun.warm().head(), head)
    assert any("random weights, not from a probe: fitting it would take long" in line for line in log_lines)
    assert not np.array_equal(start("head_init=probe").warm().head(), head), "what is asked for is done"


def test_a_model_without_a_linear_head_is_refused_and_auto_falls_back(start, monkeypatch, log_lines) -> None:
    monkeypatch.setattr(module, "head_linear", lambda *_: None)
    with pytest.raises(
        UserError, match=r"model.head_init is probe, but the model has no linear head; set it to random"
    ):
        start("head_init=probe").warm()
    start("head_init=auto", exp__baselines=True).warm()
    assert any("not from a probe: the model has no linear head" in line for line in log_lines)
    assert any("baseline of a linear probe is skipped: the model has no linear head" in line for line in log_lines)


@pytest.mark.parametrize(("head", "limit"), [("probe", "MAX_ROWS"), ("label_text", "SCALE_ROWS")])
def test_only_so_many_rows_are_read(start, monkeypatch, head: str, limit: str, log_lines: list[str]) -> None:
    monkeypatch.setattr(module, limit, 30)
    begun, sizes = start(f"head_init={head}", exp__baselines=False), []
    real = module.collect_states
    monkeypatch.setattr(
        module, "collect_states", lambda s, split, linear: sizes.append(len(split)) or real(s, split, linear)
    )
    begun.warm()
    assert sizes == [30, 3]
    assert any("the frozen model reads 30 texts" in line for line in log_lines), "a long wait has a reason"
