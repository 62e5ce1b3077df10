"""Checks of what compiles and quantizes: the compiler, and the kernels of bitsandbytes."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from importlib.metadata import version

import torch

from llmcls.diagnosis.findings import Finding, Subject, fault, ok, skipped, warning
from llmcls.diagnosis.subject import device_of, dtype_of
from llmcls.model.fused_ops import compiler_error

# Largest error of a 4-bit product, relative to the product with the weights that 4 bits store.
TOLERANCE = 2e-2


def compiler(subject: Subject) -> Finding:
    """Whether the fused formulas can be compiled for the device, by compiling and running them."""
    device = device_of(subject)
    if device.type not in ("cpu", "cuda"):
        return skipped(f"torch does not compile for {device.type}; kernels run uncompiled")
    program = find_compiler(device.type)
    linux = platform.system() == "Linux"
    names, variable = ("C", "CC") if device.type == "cuda" else ("C++", "CXX")
    # Elsewhere a compiler is much to ask for, and what is lost is only speed.
    report = fault if linux else warning
    advice = (
        f"install one (such as g++) or set {variable}; without it training is slower, because kernels are not fused"
    )
    if program is None:
        return report(f"no {names} compiler was found", advice)
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return report(
            "triton is not installed", "install triton (triton-windows on Windows); training is slower without"
        )
    # One kind of each formula is enough to know whether the compiler works.
    error = compiler_error(device, dtype_of(subject), {False}, {"silu"})
    if error is not None:
        return report(
            f"{program} was found, but torch cannot compile: {error}", f"{advice}; triton also needs python3-dev"
        )
    return ok(f"kernels compile and run on {device.type} (with {program})", program=program)


def find_compiler(device: str) -> str | None:
    """The compiler that torch would call for a device, or None."""
    names = [os.environ.get("CC"), "gcc", "clang", "cc"]
    if device == "cpu":
        names = [os.environ.get("CXX"), "g++", "clang++", "c++"]
    if platform.system() == "Windows":
        names.append("cl")
    return next((name for name in names if name and shutil.which(name.split()[0])), None)


def four_bit_kernels(subject: Subject) -> Finding:
    """Whether bitsandbytes quantizes a weight and multiplies by it, forward and backward, on the device."""
    wanted = subject.recipe is not None and subject.recipe.model.use_4bit
    if importlib.util.find_spec("bitsandbytes") is None:
        if wanted:
            return fault("bitsandbytes is not installed", "run `pip install bitsandbytes`, or set model.use_4bit=false")
        return skipped("bitsandbytes is not installed (needed for model.use_4bit only)")
    import bitsandbytes
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    device, dtype = device_of(subject), dtype_of(subject)
    weight = torch.linspace(-1, 1, 256 * 128, device=device).sin().mul(3).view(256, 128).to(dtype)
    x = torch.linspace(-1, 1, 16 * 128, device=device).view(16, 128).to(dtype).requires_grad_()
    stored, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    seen = dequantize_4bit(stored, state).float()
    product = bitsandbytes.matmul_4bit(x, stored.t(), state)  # type: ignore[attr-defined]
    product.float().square().sum().backward()
    expected = x.detach().float() @ seen.T
    assert x.grad is not None
    forward = float((product.detach().float() - expected).norm() / expected.norm())
    backward = float((x.grad.float() - 2 * expected @ seen).norm() / (2 * expected @ seen).norm())
    rounding = float((seen - weight.float()).norm() / weight.float().norm())
    number = version("bitsandbytes")
    details = {"forward": forward, "backward": backward, "rounding": rounding}
    # Written so that a NaN fails.
    if not (forward <= TOLERANCE and backward <= TOLERANCE and rounding <= 0.15):
        return fault(
            f"bitsandbytes {number} computes wrong products on {device.type} (off by {max(forward, backward):.0e}, "
            f"rounding {rounding:.0e})",
            "install another version of bitsandbytes, or set model.use_4bit=false",
            **details,
        )
    return ok(f"bitsandbytes {number} quantizes and multiplies on {device.type}, forward and backward", **details)
