"""The doctor as a user sees it: a healthy machine is ready, and each of four planted faults is found and named."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from llmcls import doctor
from llmcls.common.user_error import UserError
from llmcls.diagnosis.checks import CHECKS
from llmcls.diagnosis.software import find_compiler
from llmcls.model import packed_attention
from tests.diagnosis.helpers import examine

pytestmark = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.skipif(find_compiler("cpu") is None, reason="without a C++ compiler the doctor says: not ready")
def test_a_healthy_machine_is_ready(write_recipe, tmp_path: Path, monkeypatch, capsys) -> None:
    recipe = write_recipe(model__torch_dtype="bfloat16")
    code, lines, written = examine(monkeypatch, capsys, tmp_path / "doctor.json", str(recipe))
    assert code == 0, lines
    assert lines[-1].startswith("ready")
    assert [line.split()[1] for line in lines if line.split()[0] in ("ok", "warning", "skipped")] == [
        check.name for check in CHECKS
    ]
    status = {check["name"]: check["status"] for check in written["checks"]}
    computed = ("compiler", "bitsandbytes", "processes", "kernels", "packing", "fused", "last-token", "4bit", "resume")
    assert {name: status[name] for name in computed} == dict.fromkeys(computed, "ok")
    assert written["ready"] is True
    assert written["recipe"]["model"]["torch_dtype"] == "bfloat16"
    assert any("stopped after step 2 of 4 and resumed: the same weights to the last bit" in line for line in lines)
    details = {check["name"]: check.get("details", {}) for check in written["checks"]}
    assert 0.2 < details["peak"]["ratio"] < 5
    assert 0 < details["speed"]["share"] < 1.5


def test_a_missing_compiler_is_a_fault(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    code, lines, written = examine(monkeypatch, capsys, tmp_path / "doctor.json", "--only", "compiler")
    assert code == 1
    assert lines[0].startswith("fault    compiler      no C")
    assert "install one (such as g++)" in lines[1]
    assert lines[-2] == "not ready: 1 fault(s)"
    assert lines[-1].startswith("  compiler: install one")
    assert written["ready"] is False


def test_an_old_torch_is_a_fault(tmp_path: Path, monkeypatch, capsys) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.4.1" if name == "torch" else real(name))
    code, lines, _ = examine(monkeypatch, capsys, tmp_path / "doctor.json", "--only", "libraries")
    assert code == 1
    assert lines[0] == "fault    libraries     torch 2.4.1 is installed, >=2.11 is required"
    assert lines[1].endswith("-> run `pip install --upgrade 'torch>=2.11'`")
    assert "not ready: 1 fault(s)" in lines


def test_packing_that_is_broken_for_longer_texts_is_a_fault(write_recipe, tmp_path: Path, monkeypatch, capsys) -> None:
    # The trial before a training has texts of up to 9 tokens, so it does not see this.
    real = packed_attention.attention

    def forgets_the_start_of_long_texts(query: Any, key: Any, value: Any, pack: Any, *more: Any) -> torch.Tensor:
        if max(pack.lengths) > 16 and len(pack.lengths) > 1:
            value = value.clone()
            value[:, :, -20:] = 0
        return real(query, key, value, pack, *more)

    monkeypatch.setattr(packed_attention, "attention", forgets_the_start_of_long_texts)
    code, lines, _ = examine(
        monkeypatch, capsys, tmp_path / "doctor.json", str(write_recipe()), "--only", "packing", "--only", "attention"
    )
    assert code == 1
    assert lines[0].startswith("ok       attention     packed")
    assert lines[1].startswith("fault    packing       not true: packed texts give the states and gradients of single")
    assert "set train.packing to false" in lines[2]
    assert lines[-2] == "not ready: 1 fault(s)"


def test_packing_that_fails_its_own_trial_on_a_llama_is_a_fault(tmp_path: Path, monkeypatch, capsys) -> None:
    real = packed_attention.make_pack

    def continues_positions(lengths: list[int], device: torch.device, *more: bool) -> packed_attention.Pack:
        pack = real(lengths, device, *more)
        pack.position_ids = torch.arange(sum(lengths), device=device)[None] * 2
        return pack

    monkeypatch.setattr("llmcls.model.packed_forward.make_pack", continues_positions)
    code, lines, _ = examine(monkeypatch, capsys, tmp_path / "doctor.json", "--only", "attention")
    assert code == 1
    assert lines[0].startswith("fault    attention     packing does not work here, not even for a Llama (padded: ")
    assert "gives other states for packed rows" in lines[0]


def test_a_model_that_is_too_large_is_a_fault(
    write_recipe, tiny_llama: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    large = tmp_path / "large"
    shutil.copytree(tiny_llama, large, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((large / "config.json").read_text(encoding="utf-8"))
    config |= {
        "hidden_size": 65536, "intermediate_size": 262144, "num_hidden_layers": 8, "num_attention_heads": 512,
        "num_key_value_heads": 8, "head_dim": 128,
    }  # fmt: skip
    (large / "config.json").write_text(json.dumps(config), encoding="utf-8")
    recipe = write_recipe(model__model_name=str(large), model__torch_dtype="bfloat16")
    code, lines, written = examine(monkeypatch, capsys, tmp_path / "doctor.json", str(recipe), "--only", "fit")
    assert code == 1
    assert lines[0].startswith("fault    fit           a step of 8 x 64 tokens needs about ")
    assert "lower train.micro_batch_tokens" in lines[1]
    details = written["checks"][0]["details"]
    assert details["needed_gib"] > 800 > details["have_gib"]


def test_checks_run_in_another_process_and_the_file_goes_to_the_results(write_recipe, tmp_path: Path, capsys) -> None:
    doctor.main([str(write_recipe()), "--only", "system", "--only", "files"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["ok", "system"], ["ok", "files"]]
    assert lines[2:] == [f"written: {tmp_path / 'outputs' / 'doctor.json'}", "ready"]
    # Besides the file, nothing is left there.
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["doctor.json"]


def test_it_refuses_to_run_in_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match="run it without a launcher"):
        doctor.main([])


def test_an_unknown_check_is_refused_with_the_names_of_all() -> None:
    with pytest.raises(UserError, match="--only: packign is not a check; the checks are system, driver, torch"):
        doctor.main(["--only", "packign"])
