from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from llmcls.model.late_compile import compiling_late
from tests.helpers import ROOT


def test_a_decorated_function_is_compiled_once_at_its_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compiler(function, **options):
        compiled.append((function.__name__, options))
        return lambda x: function(x) + 100

    monkeypatch.setattr(torch, "compile", compiler)
    with compiling_late():

        @torch.compile
        def plain(x: int) -> int:
            """What it does."""
            return x + 1

        @torch.compile(dynamic=False)
        def dynamic(x: int) -> int:
            return x + 2

        direct = torch.compile(lambda x: x + 3, fullgraph=True)
        assert compiled == []
    assert torch.compile is compiler
    assert (plain.__name__, plain.__doc__) == ("plain", "What it does.")
    assert [plain(1), plain(1), dynamic(1), direct(1)] == [102, 102, 103, 104]
    assert compiled == [("plain", {}), ("dynamic", {"dynamic": False}), ("<lambda>", {"fullgraph": True})]


def test_an_error_of_an_import_restores_the_compiler() -> None:
    compiler = torch.compile
    with pytest.raises(ImportError), compiling_late():
        raise ImportError("no such library")
    assert torch.compile is compiler


@pytest.mark.slow
def test_building_a_classifier_with_an_adapter_imports_no_compiler(write_recipe) -> None:
    script = (
        "import sys; from llmcls.train import main; "
        f"main([{str(write_recipe(train__max_steps=1))!r}]); "
        "print('peft' in sys.modules, 'torch._inductor.compile_fx' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "True False"
