from __future__ import annotations

import pytest
import torch
from torch._dynamo.exc import FailOnRecompileLimitHit

from llmcls.model import formulas
from llmcls.model.formulas import FORMULAS, register_formulas


def test_every_formula_is_an_operation_that_fake_tensors_understand() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    register_formulas()
    assert {name for name in FORMULAS if hasattr(torch.ops.llmcls, name)} == set(FORMULAS)
    with FakeTensorMode():
        x, weight = torch.empty(2, 3, 8, dtype=torch.bfloat16), torch.empty(8, dtype=torch.bfloat16)
        out, scale = torch.ops.llmcls.rms_norm(x, weight, 1e-6, False, True)
        d_gate, d_up = torch.ops.llmcls.gated_activation_backward(x, x, x, "gelu_tanh", True)
    assert (out.shape, out.dtype) == (x.shape, torch.bfloat16)
    assert (scale.shape, scale.dtype) == ((2, 3), torch.float32)
    assert d_gate.shape == d_up.shape == x.shape


def test_registering_twice_is_once() -> None:
    assert register_formulas() is register_formulas()


def test_too_many_shapes_to_compile_run_the_formula_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(formula: object) -> object:
        def run(*_: object) -> None:
            raise FailOnRecompileLimitHit("too many")

        return run

    register_formulas()
    monkeypatch.setattr(formulas, "_compiled", refuses)
    gate, up = torch.randn(2, 4), torch.randn(2, 4)
    found = torch.ops.llmcls.gated_activation(gate, up, "silu", True)
    assert torch.equal(found, torch.nn.functional.silu(gate) * up)


def test_compiled_code_does_not_depend_on_views_or_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, bool]] = []

    def watches(formula: object) -> object:
        def run(gate: torch.Tensor, *rest: object) -> object:
            seen.append((gate.requires_grad, torch.is_grad_enabled()))
            return formula(gate, *rest)  # type: ignore[operator]

        return run

    register_formulas()
    monkeypatch.setattr(formulas, "_compiled", watches)
    base = torch.randn(4, 4, requires_grad=True)
    for gate in (base, base.t(), base.detach()):
        torch.ops.llmcls.gated_activation(gate.detach() if gate is base else gate, base.detach(), "silu", True)
    assert set(seen) == {(False, False)}
