"""The Triton kernels against their formulas, in Triton's interpreter; tests/cuda runs them on a GPU."""

from __future__ import annotations

import pytest

from tests.model.helpers import json_lines_of

pytest.importorskip("triton", reason="needs triton, which builds of torch for CPUs do not bring")
pytest.importorskip("bitsandbytes")

# The interpreter has to be chosen before triton is imported. Its 16-bit numbers are cut off instead of rounded, and its
# products of bfloat16 are wrong, so they are compared in float32 and float16.
SCRIPT = """
import json, sys
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from llmcls.model import formulas, triton_kernels as kernels

torch.manual_seed(0)
results = {}

def note(name, found, expected):
    found, expected = (x if isinstance(x, tuple) else (x,) for x in (found, expected))
    for a, b in zip(found, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), (name, a.shape, a.dtype, b.shape, b.dtype)
        off = float((a.float() - b.float()).abs().max() / b.float().abs().max()) if b.numel() else 0.0
        results[name] = max(results.get(name, 0.0), off)

for shape in ((1, 7, 96), (1, 1, 64), (2, 5, 4, 16), (3, 100), (1, 0, 64)):
    x, up, d_out = torch.randn(3, *shape).unbind()
    weight = torch.randn(shape[-1])
    for offset in (False, True):
        expected = formulas._rms_norm(x, weight, 1e-6, offset)
        note("norm", kernels.rms_norm(x, weight, 1e-6, offset), expected)
        arguments = x, up, weight, 1e-6, offset
        note("sum", kernels.add_rms_norm(*arguments), formulas._add_rms_norm(*arguments))
        for d_x in (None, up):
            arguments = d_out, d_x, x, weight, expected[1], offset
            note("norm backward", kernels.rms_norm_backward(*arguments), formulas._rms_norm_backward(*arguments))
    for kind in ("silu", "gelu_tanh"):
        arguments = 3 * x, up, kind
        note(kind, kernels.gated_activation(*arguments), formulas._gated_activation(*arguments))
        arguments = d_out, 3 * x, up, kind
        expected = formulas._gated_activation_backward(*arguments)
        note(kind + " backward", kernels.gated_activation_backward(*arguments), expected)
# The weight is applied after rounding, and decides about the precision of the result.
x, weight = torch.randn(1, 9, 64).half(), torch.randn(64)
note("norm of 16 bits", kernels.rms_norm(x, weight, 1e-6, False), formulas._rms_norm(x, weight, 1e-6, False))
for rows, heads, key_heads, tokens, width in ((1, 4, 2, 6, 16), (2, 3, 1, 5, 24), (1, 9, 9, 3, 64), (1, 4, 0, 3, 8)):
    for transposed in (False, True):
        query, key = (
            torch.randn(rows, tokens, n, width).transpose(1, 2) if transposed else torch.randn(rows, n, tokens, width)
            for n in (heads, key_heads)
        )
        cos, sin = torch.randn(2, rows, tokens, width).unbind()
        for inverse in (False, True):
            found = kernels.rotary(query, key, cos, sin, inverse)
            note("rotary", found, formulas._rotary(query, key, cos, sin, inverse))
            assert found[0].stride() == query.stride()
# One angle for all rows.
query, key = torch.randn(2, 2, 3, 5, 16).unbind()
cos, sin = torch.randn(2, 1, 5, 16).unbind()
note("rotary", kernels.rotary(query, key, cos, sin, False), formulas._rotary(query, key, cos, sin, False))
# As bitsandbytes packs and unpacks on a CPU, with a last block that is not full.
for shape in ((24, 64), (7, 33 * 2), (300, 256)):
    for kind in ("nf4", "fp4"):
        packed, state = quantize_4bit(torch.randn(shape), quant_type=kind)
        found = kernels.dequantize(packed, state.absmax, state.code, state.blocksize, state.shape, torch.float32)
        note("4 bits", found, dequantize_4bit(packed, state))
print(json.dumps(results))
"""


def test_every_kernel_gives_what_its_formula_gives() -> None:
    (results,) = json_lines_of(SCRIPT, TRITON_INTERPRET="1")
    assert len(results) == 10
    for name, off in results.items():
        assert off <= (2e-3 if name == "norm of 16 bits" else 2e-6), (name, off)


# Compiles every kernel for a GPU of the Ampere generation, without one, for the sizes of a 1B Llama in bfloat16, and
# prints for each whether it reads and writes 16 bytes at once. "*" are pointers; sizes of a micro-batch are not known.
COMPILE = """
import json
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from llmcls.model import triton_kernels as kernels

NARROW, TILE = "*bf16", {"ADD": True, "UNIT_OFFSET": False, "ROWS": 1, "WIDTH": 2048}
CASES = [
    (kernels._rms_norm_kernel, {"scale": "*fp32", "eps": "fp32"}, ("x", "y", "weight", "total", "out"), TILE),
    (kernels._rms_norm_backward_kernel, {"scale": "*fp32"}, ("d_out", "d_other", "x", "weight", "d_x"), TILE),
    (kernels._gated_activation_kernel, {}, ("gate", "up", "out"), {"SILU": True, "BLOCK": 2048}),
    (kernels._gated_activation_kernel, {}, ("gate", "up", "out"), {"SILU": False, "BLOCK": 2048}),
    (
        kernels._gated_activation_backward_kernel, {}, ("d_out", "gate", "up", "d_gate", "d_up"),
        {"SILU": True, "BLOCK": 2048},
    ),
    (
        kernels._rotary_kernel, {}, ("query", "key", "cos", "sin", "out_query", "out_key"),
        {"INVERSE": True, "HEADS": 32, "KEY_HEADS": 8, "HALF": 32},
    ),
    (
        kernels._dequantize_kernel, {"packed": "*u8", "scales": "*fp32", "code": "*fp32"}, ("out",),
        {"PER_SCALE": 64, "BLOCK": 2048},
    ),
]
for kernel, types, pointers, constants in CASES:
    types = types | dict.fromkeys(pointers, NARROW) | dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    known = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names)
        if name not in constants and signature[name] not in ("fp32",) and name not in kernels.SIZES
    }
    constants = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, constants, known)
    code = triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["ptx"]
    print(json.dumps([kernel.__name__, "ld.global.v4" in code, "st.global.v4" in code]))
"""


def test_every_kernel_compiles_for_a_gpu_and_moves_16_bytes_at_once() -> None:
    found = json_lines_of(COMPILE)
    assert len(found) == 7
    assert all(reads and writes for _, reads, writes in found), found
