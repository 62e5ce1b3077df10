from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from llmcls.common.user_error import UserError
from llmcls.serving.proof import Proof, Speed, read_proof, run_without_llmcls


@pytest.mark.parametrize("speed", [None, Speed(30.0, 20.0, 64, 3, 1)])
def test_a_proof_is_read_as_it_was_written(speed: Speed | None) -> None:
    proof = Proof("validation", 40, 1e-7, 1, 0, 1e-5, "float32", speed)
    assert read_proof(json.loads(json.dumps({"run": "run_0", **asdict(proof)}))) == proof
    assert str(proof).startswith("40 validation rows: largest difference of a probability 1.0e-07 (allowed 1e-05), 1 ")
    assert ("texts/s" in str(proof)) == (speed is not None)


def test_the_script_cannot_import_llmcls(tmp_path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import llmcls\n", encoding="utf-8")
    with pytest.raises(UserError, match="does not load without llmcls: ModuleNotFoundError"):
        run_without_llmcls(script, [])
