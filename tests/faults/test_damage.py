"""Every file of a run folder, damaged in every way: found, named, and replaced by an older one or refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from accelerate import Accelerator

from llmcls.common.signals import STOP_AFTER
from llmcls.common.user_error import UserError
from llmcls.results.finished_runs import open_run
from llmcls.results.run_folder import RunFolder
from llmcls.train import main
from llmcls.training.best_checkpoints import require_best
from llmcls.training.checkpoints import intact_checkpoint, read_progress
from tests.common.test_manifest import DAMAGES

pytestmark = pytest.mark.slow

# Text for people, which no command reads.
UNREAD = ("log.txt", "logs/")


def files_of(folder: Path) -> list[str]:
    """The names of all files in a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def damaged(folder: Path, name: str, kind: str) -> None:
    """Damage a file in a way."""
    DAMAGES[kind](folder / name)


def test_every_damage_of_a_finished_run_is_named(trained_once, tmp_path: Path, log_lines) -> None:
    whole = trained_once.runs[0]
    folder = tmp_path / "run_0"
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("checkpoints", "logs"))
    silent, tried = [], 0
    for name in files_of(folder):
        if name.startswith(UNREAD):
            continue
        for kind in DAMAGES:
            damaged(folder, name, kind)
            log_lines.clear()
            try:
                open_run(RunFolder(folder))
                said = " ".join(log_lines)
            except UserError as error:
                said = str(error)
                assert len(said) < 300 + len(str(folder))
            tried += 1
            # Without metrics.json a run is not finished, and without labels or recipe the folder holds no model.
            if name not in said and not (kind == "gone" and "was started but not finished" in said):
                silent.append((name, kind, said))
            shutil.copyfile(whole / name, folder / name)
    assert silent == []
    assert tried >= 12 * len(DAMAGES)


@pytest.fixture(scope="module")
def interrupted(tiny_llama: Path, products: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after its second evaluation, of which the first was the best."""
    import yaml

    from tests.conftest import small_recipe
    from tests.helpers import fresh_accelerator

    folder = tmp_path_factory.mktemp("interrupted")
    values = small_recipe(tiny_llama, products, folder / "outputs")
    values["train"] |= {"eval_steps": 2, "train_metrics_rows": 0}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    fresh_accelerator()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(STOP_AFTER, "5")
        with pytest.raises(SystemExit):
            main([str(folder / "recipe.yaml")])
    return folder / "outputs" / "tiny-llama" / "products" / "run_0"


def test_every_damage_of_a_checkpoint_leads_to_the_one_before(interrupted: Path, tmp_path: Path, log_lines) -> None:
    silent = []
    names = [name for name in files_of(interrupted / "checkpoints") if name.startswith(("last/", "best/"))]
    assert len(names) >= 6
    for name in names:
        for kind in DAMAGES:
            folder = tmp_path / "run_0"
            shutil.copytree(interrupted, folder, copy_function=os.link)
            # Its own copy, because the others are links.
            target = folder / "checkpoints" / name
            target.unlink()
            shutil.copyfile(interrupted / "checkpoints" / name, target)
            damaged(folder / "checkpoints", name, kind)
            log_lines.clear()
            run = RunFolder(folder)
            found = intact_checkpoint(run)
            assert found is not None
            if name.startswith("last/"):
                if found != run.previous_checkpoint or not any("is damaged" in line for line in log_lines):
                    silent.append((name, kind))
            else:
                progress = read_progress(found)
                try:
                    require_best(run, found, progress.step, progress.best_step)
                    said = " ".join(log_lines)
                except UserError as error:
                    said = str(error)
                if "best is damaged" not in said:
                    silent.append((name, kind))
            shutil.rmtree(folder)
    assert silent == []


def test_two_damaged_checkpoints_are_a_clear_stop(interrupted: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(interrupted, tmp_path / "run_0"))
    for name in ("last", "previous"):
        damaged(folder / "checkpoints" / name, "optimizer.pt", "middle")
    with pytest.raises(UserError, match=r"last is damaged: optimizer\.pt has another content.*no other is intact"):
        intact_checkpoint(RunFolder(folder))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_checkpoint_written_over_a_kill_is_always_one_of_the_two(interrupted: Path, tmp_path: Path) -> None:
    from llmcls.common.files import read_json
    from llmcls.training.checkpoints import Snapshot, write_last
    from tests.faults.kills import killed_at

    snapshot = Snapshot({}, {}, read_json(interrupted / "checkpoints/last/progress.json") | {"step": 99})
    Accelerator(cpu=True)
    number, steps = 0, set()
    while True:
        folder = Path(shutil.copytree(interrupted, tmp_path / str(number)))
        run = RunFolder(folder)
        killed = killed_at(number, lambda run=run: write_last(run, snapshot))
        found = intact_checkpoint(run)
        assert found is not None
        steps.add(read_progress(found).step)
        if not killed:
            break
        number += 1
    assert steps == {5, 99}
    assert number >= 5
