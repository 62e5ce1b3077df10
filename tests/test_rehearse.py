from __future__ import annotations

import subprocess
import sys

import pytest

from llmcls.common.user_error import UserError
from llmcls.rehearse import main
from tests.helpers import ROOT, refusal

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.mark.long
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


def test_a_folder_that_holds_no_rehearsal_is_not_used(write_recipe, tmp_path, monkeypatch, capsys) -> None:
    results = tmp_path / "home" / "outputs" / "results.txt"
    results.parent.mkdir(parents=True)
    results.write_text("months of work")
    monkeypatch.chdir(tmp_path / "home")
    assert "--keep: . is not empty, and holds no rehearsal; name a new folder" in refusal(
        capsys, "rehearse", write_recipe(), "--profile", "ddp", "--keep", "."
    )
    assert results.read_text() == "months of work"
