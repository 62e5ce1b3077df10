from __future__ import annotations

from pathlib import Path

import pytest

from llmcls.common.user_error import UserError
from llmcls.scratch import main
from tests.helpers import train

pytestmark = pytest.mark.slow


def test_a_model_made_for_the_recipe_trains_whole(write_recipe, tmp_path: Path) -> None:
    folder = tmp_path / "own" / "model"
    recipe = write_recipe(model__model_name=str(folder), model__lora_r=0, model__pooling="mean")
    main([str(recipe), "--vocabulary", "600", "--hidden", "64"])
    import json

    root = train(recipe, "train.num_train_epochs=3", "train.learning_rate=3e-3")
    found = json.loads((root / "run_0" / "metrics.json").read_text(encoding="utf-8"))
    assert found["training"]["loss"] < found["training"]["first_loss"]
    with pytest.raises(UserError, match="which already exists; remove it or choose another name"):
        main([str(recipe)])


def test_a_size_that_cannot_be_is_refused(write_recipe) -> None:
    with pytest.raises(UserError, match="--hidden must be a multiple of 32"):
        main([str(write_recipe()), "--hidden", "50"])
