"""Trained weights and optimizer state, whole and by name, whatever engine holds them.

Under FSDP2 a parameter is a `DTensor`, under DeepSpeed a slice of a flat buffer. Here each becomes one CPU tensor
under its name in the classifier, and can be put back. So a checkpoint does not depend on the engine or the number of
processes. Every function is collective: all ranks must call it.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import FSDPModule

from llmcls.common.user_error import UserError
from llmcls.engine.accelerator import unwrapped
from llmcls.engine.shards import torch_optimizer

# The state of each trained parameter by its name: "step", "exp_avg", "exp_avg_sq" or their 8-bit counterparts.
OptimizerState = dict[str, dict[str, Any]]


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name: those that the optimizer has.

    After a forward pass without a backward pass, the outermost module of FSDP2 still has whole copies of its parameters
    in their place, which the optimizer does not know.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
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
    UserError
        If the names are not those of this model.
    """
    parameters = trained_parameters(model)
    if parameters.keys() != weights.keys():
        odd = sorted(parameters.keys() ^ weights.keys())
        raise UserError(f"the checkpoint belongs to another model: only one of the two has {', '.join(odd[:5])}")
    set_trained_weights(accelerator, model, weights)


def set_trained_weights(accelerator: Accelerator, model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Give some trained parameters whole values, float32 on the CPU, by name; the same on every rank."""
    parameters = trained_parameters(model)
    by_deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    if by_deepspeed:
        import deepspeed
        from deepspeed.utils import safe_set_full_fp32_param
    with torch.no_grad():
        for name, weight in weights.items():
            parameter = parameters[name]
            if by_deepspeed:
                value = weight.to(accelerator.device)
                safe_set_full_fp32_param(parameter, value)
                # That set the master copy; the weights of the forward pass would follow only at the next step.
                with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                    parameter.data.copy_(value)
            else:
                parameter.copy_(_like(weight, parameter))


def full_optimizer_state(accelerator: Accelerator, model: nn.Module, optimizer: Any) -> OptimizerState:
    """The optimizer state of each trained parameter, whole, on the CPU."""
    inner = torch_optimizer(optimizer)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from deepspeed.utils import safe_get_full_optimizer_state

        if hasattr(optimizer.optimizer, "_hp_optimizer_states_linked"):
            # Stages 1 and 2 link parameters with their state after the first step of the first group, before the
            # other groups have any state, and never again. So link them again here.
            optimizer.optimizer._hp_optimizer_states_linked = False
            optimizer.optimizer._lazy_init_hp_params_optimizer_state()
        # One counter for all parameters: DeepSpeed keeps its state by flat partition.
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


def load_optimizer_state(accelerator: Accelerator, model: nn.Module, optimizer: Any, saved: OptimizerState) -> None:
    """Put the values of `full_optimizer_state` back."""
    inner = torch_optimizer(optimizer)
    parameters = trained_parameters(model)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from deepspeed.utils import safe_set_full_optimizer_state

        _start_zero_state(optimizer.optimizer, float(next(iter(saved.values()))["step"]))
        for name, parameter in parameters.items():
            for key in ("exp_avg", "exp_avg_sq"):
                safe_set_full_optimizer_state(parameter, saved[name][key].to(accelerator.device), key)
        return
    # Fused and capturable kernels read the step counter on the device; the others read it on the host.
    on_device = {id(p) for g in inner.param_groups if g.get("fused") or g.get("capturable") for p in g["params"]}
    for name, parameter in parameters.items():
        inner.state[parameter] = {
            # Tensors of the parameter's shape are sharded like the parameter.
            k: _like(v, parameter)
            if torch.is_tensor(v) and v.shape == parameter.shape
            else _beside(v, parameter, id(parameter) in on_device)
            for k, v in saved[name].items()
        }


def _start_zero_state(zero: Any, step: float) -> None:
    """Give a new ZeRO optimizer the state that it would make in its first step, after ``step`` steps."""
    stage_3 = hasattr(zero, "fp32_partitioned_groups_flat")
    for flat in zero.fp32_partitioned_groups_flat if stage_3 else zero.single_partition_of_fp32_groups:
        zero.optimizer.state[flat] = {
            "step": torch.full((), step, dtype=torch.float32, device=flat.device),
            "exp_avg": torch.zeros_like(flat),
            "exp_avg_sq": torch.zeros_like(flat),
        }
    if not stage_3:
        # Stages 1 and 2 find a parameter's part of the flat state by links that are made in the first step.
        zero._lazy_init_hp_params_optimizer_state()


def _whole(tensor: Any) -> torch.Tensor:
    tensor = tensor.detach()
    whole: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.clone() if whole.device.type == "cpu" else whole.cpu()


def _like(value: torch.Tensor, parameter: Any) -> torch.Tensor:
    """``value`` on the device of the parameter, and sharded like it."""
    if not hasattr(parameter, "device_mesh"):
        return value.to(parameter.device)
    from torch.distributed.tensor import distribute_tensor

    mesh = parameter.device_mesh
    # The parts of a parameter that is offloaded are in main memory, and not where its mesh computes.
    return distribute_tensor(value.to(mesh.device_type), mesh, parameter.placements).to(parameter.device)


def _beside(value: Any, parameter: torch.Tensor, scalars_too: bool) -> Any:
    """A value of another shape on the device of the parameter: block scales, and scalars if a kernel reads them."""
    moves = torch.is_tensor(value) and (value.dim() > 0 or scalars_too)
    return value.to(parameter.device) if moves else value
