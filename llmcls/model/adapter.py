"""LoRA: which modules of a pretrained model get an adapter."""

from __future__ import annotations

from typing import Any

from torch import nn

from llmcls.model.late_compile import compiling_late
from llmcls.recipe.schema import Recipe


def add_adapter(network: Any, new_modules: list[str], recipe: Recipe) -> Any:
    """Wrap a sequence classifier in the recipe's adapter.

    Parameters
    ----------
    network : `transformers` sequence classifier
    new_modules : list of str
        Modules without pretrained weights (the head), which are trained as a whole.
    recipe : Recipe

    Returns
    -------
    peft.PeftModel

    Raises
    ------
    UserError
        If ``lora_target_modules`` or ``lora_layers`` name what the model does not have, or ``lora_r`` is larger than
        the rank of every layer.
    """
    # Importing peft imports bitsandbytes, which prints; so only where it is needed.
    with compiling_late():
        from peft import LoraConfig, TaskType, get_peft_model

    spec = recipe.model
    targets: list[str] | str = spec.lora_target_modules
    linear = sorted({n.rpartition(".")[2] for n, m in network.base_model.named_modules() if isinstance(m, nn.Linear)})
    if targets == ["all-linear"]:
        targets = "all-linear"
    else:
        names = {n for n, _ in network.named_modules()}
        for target in targets:
            if not any(n == target or n.endswith(f".{target}") for n in names):
                raise recipe.error(
                    "model.lora_target_modules",
                    f"names {target!r}, which {spec.model_name} does not have; "
                    f"its linear layers are {', '.join(linear)}",
                )
    _check_rank(network, recipe)
    depth = network.config.get_text_config().num_hidden_layers
    if spec.lora_layers is not None:
        beyond = [i for i in spec.lora_layers if not -depth <= i < depth]
        if beyond or not spec.lora_layers:
            raise recipe.error("model.lora_layers", f"is {spec.lora_layers}; the layers are 0 to {depth - 1}")
        # peft accepts layers only together with a list of modules.
        targets = linear if targets == "all-linear" else targets
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=spec.lora_r,
        lora_alpha=spec.lora_alpha,  # type: ignore[arg-type]  # peft accepts floats too
        lora_dropout=spec.lora_dropout,
        target_modules=targets,
        modules_to_save=new_modules,
        use_rslora=spec.lora_variant == "rslora",
        use_dora=spec.lora_variant == "dora",
        layers_to_transform=None if spec.lora_layers is None else sorted({i % depth for i in spec.lora_layers}),
    )
    # Beside weights without values, those of the adapter need none either.
    return get_peft_model(network, config, low_cpu_mem_usage=network.device.type == "meta")


def _check_rank(network: Any, recipe: Recipe) -> None:
    """Refuse a rank above that of every linear layer: its weights would fill the memory and learn nothing more."""
    layers = [m for m in network.base_model.modules() if isinstance(m, nn.Linear)]
    highest = max((min(m.in_features, m.out_features) for m in layers), default=recipe.model.lora_r)
    if recipe.model.lora_r > highest:
        raise recipe.error(
            "model.lora_r",
            f"is {recipe.model.lora_r}; no layer of {recipe.model.model_name} has a rank above {highest}; lower it",
        )
