"""The LoRA kernels against their formulas, in Triton's interpreter; tests/cuda runs them on a GPU."""

from __future__ import annotations

import pytest

from tests.model.helpers import json_lines_of

pytest.importorskip("triton", reason="needs triton, which builds of torch for CPUs do not bring")

# The interpreter has to be chosen before triton is imported. Its products of bfloat16 are wrong, so they
# are compared in float16.
SCRIPT = """
import builtins, json
import torch
from llmcls.model import lora_formulas as formulas, lora_kernels as kernels

def whole(value):
    return int(value.handle.data.item()) if hasattr(value, "handle") else value

# The interpreter's numbers are arrays, which the range of Python does not take.
kernels.range = lambda *bounds: builtins.range(*map(whole, bounds))
torch.manual_seed(0)
results, SEED = {}, 2**31 * 12345 + 6789

def note(name, found, expected):
    found, expected = (x if isinstance(x, list) else [x] for x in (found, expected))
    for a, b in zip(found, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), (name, a.shape, a.dtype, b.shape, b.dtype)
        off = float((a.float() - b.float()).abs().max() / b.float().abs().max()) if b.numel() else 0.0
        results[name] = max(results.get(name, 0.0), off)

def half(*shape):
    return torch.randn(*shape).half()

for layers, rank in ((1, 1), (2, 40), (3, 8)):
    for rows, width, columns in ((300, 200, (130, 40, 260)), (3, 64, (16, 16, 16)), (0, 64, (16, 16, 16))):
        for rate in (0.0, 0.3):
            x, a = half(rows, width), (width**-0.5 * torch.randn(layers * rank, width)).half()
            b, d_outs = ([half(n, m) for n in columns[:layers]] for m in (rank, rows))
            d_outs = [d.t() for d in d_outs]
            low = formulas.lora_down(x, a, 2.0, rate, SEED)
            d_low = formulas.lora_down_gradient(d_outs, b, 2.0)
            note("down", kernels.lora_down(x, a, 2.0, rate, SEED), low)
            note("up", kernels.lora_up(low, b), formulas.lora_up(low, b))
            note("down gradient", kernels.lora_down_gradient(d_outs, b, 2.0), d_low)
            found, expected = (module.lora_input_gradient(d_low, a, rate, SEED) for module in (kernels, formulas))
            note("input gradient", found, expected)
            if rate:
                assert torch.equal(found == 0, expected == 0)
            arguments = d_outs, low, x, d_low, rate, SEED
            note("matrices", kernels.lora_matrix_gradients(*arguments), formulas.lora_matrix_gradients(*arguments))
print(json.dumps(results))
"""


def test_every_kernel_gives_what_its_formula_gives() -> None:
    (results,) = json_lines_of(SCRIPT, TRITON_INTERPRET="1")
    assert len(results) == 5
    for name, off in results.items():
        assert off <= (1e-5 if name == "matrices" else 2e-3), (name, off)


# Compiles every kernel for a GPU of the Ada generation, without one, for the layers of a 1B Llama in bfloat16 and for
# the most ranks. Prints the memory that a program shares, and the bytes of the copies into it.
COMPILE = """
import json, re
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from llmcls.model import lora_kernels as kernels
from llmcls.model.triton_kernels import next_power_of_2

FLOATS = {"gradients": "*fp32", "factor": "fp32"}
NUMBERS = {"rows", "width", "columns0", "columns1", "columns2", "seed", "more_seed", "threshold"}
for name in kernels.TILES:
    kernel = getattr(kernels, f"_{name}_kernel")
    for layers, rank in ((1, 8), (3, 8), (2, 64)):
        shared_rank = rank if name in ("up", "down_gradient") else layers * rank
        tile, ranks = kernels._tile(name, shared_rank)
        constants = {
            "COUNT": layers, "RANK": shared_rank, "DROP": True, "ROWS": tile.rows, "COLUMNS": tile.columns,
            "RANKS": ranks, "ALL_RANKS": ranks,
        }
        if name == "matrix_gradients":
            constants |= {"RANK": rank, "RANKS": max(16, next_power_of_2(rank))}
        constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
        types = FLOATS | dict.fromkeys(NUMBERS, "i32") | dict.fromkeys(constants, "constexpr")
        signature = {key: types.get(key, "*bf16") for key in kernel.arg_names}
        known = {
            (i,): [["tt.divisibility", 16]] for i, key in enumerate(kernel.arg_names)
            if key not in constants and key != "factor" and key not in kernels.VARYING
        }
        constants = {(kernel.arg_names.index(key),): value for key, value in constants.items()}
        options = {"num_warps": tile.warps, "num_stages": tile.stages}
        source = ASTSource(kernel, signature, constants, known)
        done = triton.compile(source, target=GPUTarget("cuda", 89, 32), options=options)
        code = done.asm["ptx"]
        copies = set(re.findall(r"cp[.]async[.]c[ag][^;]*, (0x[0-9a-f]+|[0-9]+)", code))
        wide = "0x10" in copies or (not copies and "ld.global.v4" in code and "st.global.v4" in code)
        print(json.dumps([name, layers, rank, done.metadata.shared, wide]))
"""


def test_every_kernel_fits_into_a_consumer_card_and_moves_16_bytes_at_once() -> None:
    found = json_lines_of(COMPILE)
    assert len(found) == 15
    assert all(shared <= 99 * 1024 and wide for *_, shared, wide in found), found
