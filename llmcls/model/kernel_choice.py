"""Which fused kernels a classifier gets, chosen by trial on a small model of the same architecture."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llmcls.model.fused_ops import compiler_error
from llmcls.model.kernels import FusedKernels, fused_kinds
from llmcls.model.late_compile import compiling_late
from llmcls.model.packed_forward import PackedForward
from llmcls.model.shrink import shrink
from llmcls.model.stand_in import DeviceKind

log = logging.getLogger(__name__)

# The largest difference from the model's own modules, relative to the largest state or gradient, in float32. Rounding
# reaches 2e-5 with some random weights; a wrong operation is off by 1e-2 or more.
TOLERANCE = 1e-4
# On a CPU, compiling takes about half a minute, which only training a real model is worth.
COMPILED_ON_CPU = 50_000_000
LENGTHS = [5, 2, 9]

# What the trials found, by architecture and way of training, because one process may build many models.
_found: dict[tuple[str, bool, bool], str | None] = {}


@dataclass(frozen=True)
class KernelChoice:
    """The kernels of a classifier.

    Attributes
    ----------
    fused : bool
        Whether modules are fused at all.
    attention : bool
        Whether attention layers are.
    compiled : bool
        Whether elementwise formulas are compiled.
    reason : str
        Why not more is fused or compiled; empty if everything is.
    """

    fused: bool
    attention: bool
    compiled: bool
    reason: str

    def __str__(self) -> str:
        if not self.fused:
            return f"kernels: those of transformers and peft ({self.reason})"
        kind = "compiled" if self.compiled else "not compiled"
        return f"kernels: fused, {kind}" + (f" ({self.reason})" if self.reason else "")


def attach_kernels(
    network: Any, model: nn.Module, packed: PackedForward | None, device: torch.device | DeviceKind, dtype: torch.dtype
) -> FusedKernels | None:
    """Attach the fused kernels that give the states and gradients of the model's own modules.

    Parameters
    ----------
    network : `transformers` sequence classifier
    model : nn.Module
        The same, or the peft model around it.
    packed : PackedForward, optional
        Attached to the model if it reads packed rows.
    device : torch.device or DeviceKind
        Where the model will compute. What a `DeviceKind` can do is not tried out.
    dtype : torch.dtype
        Precision of the computation.

    Returns
    -------
    The attached object, or None if the model keeps its own modules. The log says why.
    """
    choice = choose_kernels(network, packed, device, dtype, adapted=model is not network)
    slower = device.type != "cpu" and not (choice.fused and choice.compiled)
    log.log(logging.WARNING if slower else logging.INFO, "%s", choice)
    return FusedKernels(model, choice.compiled, choice.attention).attach() if choice.fused else None


def choose_kernels(
    network: Any, packed: PackedForward | None, device: torch.device | DeviceKind, dtype: torch.dtype, adapted: bool
) -> KernelChoice:
    """What `attach_kernels` attaches.

    Parameters
    ----------
    network, packed, device, dtype
        See `attach_kernels`.
    adapted : bool
        Whether the model has a LoRA adapter.
    """
    reason: str | None = None
    for attention in (True, False) if packed is not None else (False,):
        reason = _difference(network, packed, attention, adapted)
        if reason is None:
            compiled, why_not = _compiles(network, device, dtype)
            return KernelChoice(True, attention, compiled, why_not)
    return KernelChoice(False, False, False, str(reason))


def _compiles(network: Any, device: torch.device | DeviceKind, dtype: torch.dtype) -> tuple[bool, str]:
    """Whether to compile on a device, and why not."""
    if isinstance(device, DeviceKind):
        return device.compiled, "" if device.compiled else "no compiler"
    if device.type == "cpu" and sum(p.numel() for p in network.parameters()) < COMPILED_ON_CPU:
        return False, "a small model on a CPU"
    if device.type not in ("cpu", "cuda"):
        return False, f"torch does not compile for {device.type}"
    error = compiler_error(device, dtype, *fused_kinds(network))
    return error is None, "" if error is None else f"torch cannot compile here: {error}"


def _difference(network: Any, packed: PackedForward | None, attention: bool, adapted: bool) -> str | None:
    """None if fused kernels give the states and gradients of the model's own modules, tried in float32 on the CPU."""
    config = shrink(network.config)
    settings = None if packed is None else (packed.bidirectional, packed.last_token_only)
    key = (f"{type(network).__name__} {config.to_json_string()} {settings}", attention, adapted)
    if key not in _found:
        # The random weights of the trial must not change those of the head, nor depend on the seed of the run.
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            _found[key] = _try(type(network), config, packed, attention, adapted)
    return _found[key]


def _try(kind: Any, config: Any, packed: PackedForward | None, attention: bool, adapted: bool) -> str | None:
    forward: PackedForward | None = None
    try:
        with torch.device("cpu"):
            network = kind(config).float().eval()
        network.set_attn_implementation("sdpa" if getattr(network, "_supports_sdpa", False) else "eager")
        if packed is not None:
            forward = PackedForward(
                network, "last", packed.bidirectional, last_token_only=packed.last_token_only
            ).attach()
        model = _with_adapter(network) if adapted else network
        expected = _states_and_gradients(network, model, forward)
        fused = FusedKernels(model, compiled=False, packed=attention).attach()
        found = _states_and_gradients(network, model, forward)
        fused.detach()
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        return f"{kind.__name__} does not accept them: {str(error).splitlines()[0][:160]}"
    finally:
        if forward is not None:
            forward.detach()
    distances = [(a - b).abs().max() / b.abs().max().clamp(min=1e-12) for a, b in zip(found, expected, strict=True)]
    # Not Python's max, which loses a NaN that is not the first.
    worst = float(torch.stack(distances).max())
    # Not "worst > TOLERANCE", which a NaN would pass.
    if not worst <= TOLERANCE:
        return f"{kind.__name__} gives other states or gradients with them (off by {worst:.1e})"
    return None


def _with_adapter(network: Any) -> Any:
    """A LoRA adapter on all linear layers, whose matrices B are not zero as they are in a new one."""
    with compiling_late():
        from peft import LoraConfig, TaskType, get_peft_model

    model = get_peft_model(network, LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def _states_and_gradients(network: Any, model: nn.Module, packed: PackedForward | None) -> list[torch.Tensor]:
    """The pooled states of a few texts, and the gradients of all trained weights, in a fixed order."""
    tokens = torch.arange(sum(LENGTHS)) % network.config.get_text_config().vocab_size
    if packed is not None:
        states = packed.states(tokens, LENGTHS)
    else:
        states = network.base_model(input_ids=tokens[None]).last_hidden_state[0]
    trained = [p for n, p in model.named_parameters() if p.requires_grad and "score" not in n and "classifier" not in n]
    weights = torch.linspace(-1, 1, states.numel()).view(states.shape)
    gradients = torch.autograd.grad((states * weights).sum(), trained, allow_unused=True)
    return [states.detach()] + [g for g in gradients if g is not None]
