from __future__ import annotations

from pathlib import Path

import pytest

from llmcls.check import main
from llmcls.common.user_error import UserError

pytestmark = pytest.mark.slow


def test_it_says_what_training_will_do_and_writes_nothing(write_recipe, log_lines: list[str], tmp_path: Path) -> None:
    main([str(write_recipe()), "batch_size=10", "gradient_accumulation_steps=2"])
    said = "\n".join(log_lines)
    assert "labels: 10 (multi_label_classification)" in said
    assert "steps: 8 per epoch of 20 texts on one process, at most 2 epochs, 1 seed(s)" in said
    assert f"results: {tmp_path / 'outputs' / 'tiny-llama' / 'products'}" in said
    assert log_lines[-1] == "ok"
    assert not (tmp_path / "outputs").exists()


def test_the_time_on_a_named_card_and_its_price(write_recipe, log_lines: list[str]) -> None:
    main([str(write_recipe()), "--card", "H100", "--price", "2.5", "batch_size=10"])
    said = "\n".join(log_lines)
    assert "per epoch on one H100" in said
    assert "at 2.5 per hour" in said
    with pytest.raises(UserError, match="--price needs a card; give --card NAME"):
        main([str(write_recipe()), "--price", "2.5"])


def test_a_run_of_another_recipe_in_the_folder_is_found_before_training(trained) -> None:
    with pytest.raises(UserError, match=r"train\.learning_rate was 0\.002, is now 0\.1"):
        main([str(trained.recipe), "learning_rate=0.1"])


def test_an_error_in_the_data_is_found_before_training(write_recipe) -> None:
    with pytest.raises(UserError, match="has no column 'headline'"):
        main([str(write_recipe(data__text_fields=["headline"]))])


def test_an_unfinished_run_is_said_and_not_refused(trained, log_lines: list[str]) -> None:
    (trained.runs[0] / "metrics.json").unlink()
    main([str(trained.recipe)])
    assert f"{trained.runs[0]}: unfinished; training resumes it" in log_lines
    log_lines.clear()
    (trained.runs[1] / "metrics.json").unlink()
    main([str(trained.recipe), "learning_rate=0.1"])
    said = "\n".join(log_lines)
    assert f"{trained.runs[0]} holds an unfinished run of another recipe: train.learning_rate was 0.002" in said


def test_the_verdict_repeats_what_deserves_a_look(write_recipe, products: Path, log_lines: list[str]) -> None:
    main([str(write_recipe(data__val_csv=str(products / "train.csv")))])
    verdict = log_lines[log_lines.index("training would start; look at this first:") + 1 : -1]
    assert [line.split()[0] for line in verdict] == [f"{i}." for i in range(1, len(verdict) + 1)]
    assert any("160 of 160 texts of validation are training texts too" in line for line in verdict)
