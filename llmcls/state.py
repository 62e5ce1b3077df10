"""State: trained weights and optimizer moments, whole and by name, whatever engine holds them.

Under FSDP2 a parameter is a `DTensor`, under DeepSpeed a slice of a flat buffer; here each becomes one CPU
tensor under its name in the classifier, and goes back. A checkpoint written so is independent of the engine and
of the number of processes. Every function is collective: all ranks call it.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from llmcls import UserMistake
from llmcls.engine import torch_optimizer, unwrapped

Moments = dict[str, dict[str, Any]]


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {n: p for n, p in unwrapped(model).named_parameters() if p.requires_grad}


def trained_weights(accelerator: Accelerator, model: nn.Module) -> dict[str, torch.Tensor]:
    """Every trained parameter, whole, on the CPU (under DeepSpeed its float32 master copy)."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from deepspeed.utils import safe_get_full_fp32_param

        return {n: safe_get_full_fp32_param(p).cpu().clone() for n, p in trained_parameters(model).items()}
    return {n: _whole(p) for n, p in trained_parameters(model).items()}


def load_trained_weights(accelerator: Accelerator, model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Put the values of `trained_weights` back.

    Raises
    ------
    UserMistake: the names are not those of this model.
    """
    parameters = trained_parameters(model)
    if parameters.keys() != weights.keys():
        odd = sorted(parameters.keys() ^ weights.keys())
        raise UserMistake(f"the checkpoint belongs to another model: {', '.join(odd[:5])} stand in only one of the two")
    by_deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    if by_deepspeed:
        import deepspeed
        from deepspeed.utils import safe_set_full_fp32_param
    with torch.no_grad():
        for name, parameter in parameters.items():
            if by_deepspeed:
                value = weights[name].to(accelerator.device)
                safe_set_full_fp32_param(parameter, value)
                # That was the master copy; what the forward pass reads would follow only at the next step.
                with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                    parameter.data.copy_(value)
            else:
                parameter.copy_(_like(weights[name], parameter))


def optimizer_moments(accelerator: Accelerator, model: nn.Module, optimizer: Any) -> Moments:
    """The optimizer's state of each trained parameter, whole, on the CPU."""
    inner = torch_optimizer(optimizer)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from deepspeed.utils import safe_get_full_optimizer_state

        if hasattr(optimizer.optimizer, "_hp_optimizer_states_linked"):
            # Stages 1 and 2 link parameters with their state after the first group's first step, when the other
            # groups have none yet, and never again: so anew.
            optimizer.optimizer._hp_optimizer_states_linked = False
            optimizer.optimizer._lazy_init_hp_params_optimizer_state()
        # One counter for all: DeepSpeed keeps its state by flat partition.
        step = next((s["step"] for s in inner.state.values() if "step" in s), 0)
        return {
            n: {"step": torch.tensor(float(step))}
            | {k: safe_get_full_optimizer_state(p, k).cpu().clone() for k in ("exp_avg", "exp_avg_sq")}
            for n, p in trained_parameters(model).items()
        }
    return {
        n: {k: _whole(v) if torch.is_tensor(v) else v for k, v in inner.state.get(p, {}).items()}
        for n, p in trained_parameters(model).items()
    }


def load_optimizer_moments(accelerator: Accelerator, model: nn.Module, optimizer: Any, moments: Moments) -> None:
    """Put the values of `optimizer_moments` back."""
    inner = torch_optimizer(optimizer)
    parameters = trained_parameters(model)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from deepspeed.utils import safe_set_full_optimizer_state

        _begin_zero_moments(optimizer.optimizer, float(next(iter(moments.values()))["step"]))
        for name, parameter in parameters.items():
            for key in ("exp_avg", "exp_avg_sq"):
                safe_set_full_optimizer_state(parameter, moments[name][key].to(accelerator.device), key)
        return
    for name, parameter in parameters.items():
        inner.state[parameter] = {
            # AdamW's step counter stays where it was made; everything of the parameter's shape lies beside it.
            k: _like(v, parameter) if torch.is_tensor(v) and v.shape == parameter.shape else _beside(v, parameter)
            for k, v in moments[name].items()
        }


def _begin_zero_moments(zero: Any, step: float) -> None:
    """Give a fresh ZeRO optimizer the state that it would make at its first step, with ``step`` steps done."""
    stage_3 = hasattr(zero, "fp32_partitioned_groups_flat")
    for flat in zero.fp32_partitioned_groups_flat if stage_3 else zero.single_partition_of_fp32_groups:
        zero.optimizer.state[flat] = {
            "step": torch.full((), step, dtype=torch.float32, device=flat.device),
            "exp_avg": torch.zeros_like(flat),
            "exp_avg_sq": torch.zeros_like(flat),
        }
    if not stage_3:
        # Stages 1 and 2 find a parameter's part of the flat state by links made at the first step.
        zero._lazy_init_hp_params_optimizer_state()


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).cpu().clone()


def _like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """``value`` on the parameter's device, and sharded as it is."""
    if not hasattr(parameter, "device_mesh"):
        return value.to(parameter.device)
    from torch.distributed.tensor import distribute_tensor

    mesh = parameter.device_mesh
    return distribute_tensor(value.to(mesh.device_type), mesh, parameter.placements)


def _beside(value: Any, parameter: torch.Tensor) -> Any:
    return value.to(parameter.device) if torch.is_tensor(value) and value.dim() > 0 else value
