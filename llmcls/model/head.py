"""The head: the last linear layer of a classifier, and the states that it reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def head_linear(model: nn.Module, labels: int, trained: bool = True) -> nn.Linear | None:
    """The linear layer that makes the logits.

    Parameters
    ----------
    model : nn.Module
        A `Classifier`, maybe held by an engine.
    labels : int
        Outputs of the head.
    trained : bool
        Whether the model is one that trains, of which the head is the last layer that does. In a finished run no layer
        trains, and the head is the last one with as many outputs.

    Returns
    -------
    nn.Linear or None
        For a decoder its ``score``; for an encoder the last layer of its classification head. None if the last trained
        layer of a model has another form.
    """
    found = None
    for name, module in model.named_modules():
        # The query of attention pooling is a part of the head that makes no logits.
        if not isinstance(module, nn.Linear) or name.endswith(".attend"):
            continue
        if module.weight.requires_grad if trained else module.out_features == labels:
            found = module
    return found if found is not None and found.out_features == labels else None


@contextmanager
def states_read_by(linear: nn.Linear) -> Iterator[list[torch.Tensor]]:
    """Within this context, the list holds what the last forward pass gave to a linear layer: float [texts, hidden]."""
    read: list[torch.Tensor] = []

    def keep(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        read[:] = [inputs[0].detach()]

    hook = linear.register_forward_pre_hook(keep)
    try:
        yield read
    finally:
        hook.remove()
