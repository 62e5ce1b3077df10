from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from llmcls.common.manifest import MANIFEST
from llmcls.common.user_error import UserError
from llmcls.compare import main
from tests.conftest import small_recipe
from tests.helpers import train

pytestmark = pytest.mark.slow


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    main([str(a) for a in arguments])
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def compared(tiny_llama: Path, products: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe's two seeds, tested on what they learned, and, in `crippled`, the same recipe hardly trained."""
    folder = tmp_path_factory.mktemp("compared")
    values = small_recipe(tiny_llama, products, folder / "outputs")
    values["train"] |= {"num_train_epochs": 8, "learning_rate": 1e-2}
    values["model"] |= {"lora_dropout": 0.0, "lora_target_modules": ["all-linear"]}
    values["data"]["test_csv"] = str(products / "train.csv")
    values["exp"]["seeds"] = [1, 2]
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
    root = train(recipe)
    train(recipe, "exp.run_name=crippled", "train.learning_rate=1e-6", "train.thresholds=fixed")
    return root


def test_seeds_are_noise_and_a_crippled_recipe_is_worse(compared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = compared
    seeds = printed(capsys, trained / "run_0", trained / "run_1")
    assert seeds.count("  noise\n") == 3
    assert "same recipe on both sides" in seeds
    worse = printed(capsys, trained, trained / "crippled")
    assert "f1_micro" in worse
    assert "thresholds: A joint for f1_micro; B 0.5" in worse
    assert worse.count("  rules differ\n") == 3, "its thresholds make it look worse than it is"
    assert worse.count("B is worse") >= 1
    better = printed(capsys, trained / "crippled", trained)
    assert "B is better" in better
    single = printed(capsys, trained / "run_0", trained / "crippled" / "run_0")
    assert "not the choice of seed" in single


def test_runs_that_do_not_compare_are_refused(compared: Path, tmp_path: Path) -> None:
    trained = shutil.copytree(compared, tmp_path / "copy")
    with pytest.raises(UserError, match="neither a finished run folder nor a folder of runs"):
        main([str(trained), str(tmp_path / "nothing")])
    path = trained / "crippled" / "run_0" / "predictions_test.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="predicted other test rows"):
        main([str(trained), str(trained / "crippled")])
    (trained / "crippled" / "run_1" / MANIFEST).unlink()
    names = trained / "crippled" / "run_1" / "model" / "labels.json"
    found = json.loads(names.read_text(encoding="utf-8"))
    names.write_text(json.dumps(found | {"names": found["names"][::-1]}), encoding="utf-8")
    with pytest.raises(UserError, match="has other labels than"):
        main([str(trained), str(trained / "crippled" / "run_1")])
