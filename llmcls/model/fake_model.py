"""The classifier of a recipe without its weights: fake tensors, which have shapes and types but no values."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from transformers import masking_utils

from llmcls.model.build import assemble
from llmcls.model.classifier import Classifier
from llmcls.model.pretrained import skeleton
from llmcls.model.stand_in import DeviceKind
from llmcls.recipe.schema import Recipe


def fake_classifier(recipe: Recipe, config: Any, kind: DeviceKind, mode: FakeTensorMode) -> tuple[Classifier, int]:
    """The classifier that `build_classifier` returns, as fake tensors on the CPU; no weight is read.

    Parameters
    ----------
    recipe : Recipe
    config : `transformers` configuration
        From `llmcls.model.pretrained.load_config`.
    kind : DeviceKind
        The device that it stands for.
    mode : FakeTensorMode
        Owns the tensors.

    Returns
    -------
    classifier : Classifier
        In training mode.
    parameters : int
        Weights of the model without an adapter.

    Raises
    ------
    UserError
        If the model does not fit the recipe.
    """
    # A new head draws random numbers that nobody needs.
    with torch.random.fork_rng(devices=[]), silence():
        network, new_modules = skeleton(recipe.model, config)
        parameters = sum(_count(p) for p in network.parameters())
        classifier = assemble(network, new_modules, recipe, kind)
    with mode:
        _replace_tensors(classifier, lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
    return classifier.train(), parameters


@contextmanager
def silence() -> Iterator[None]:
    """Within this context, what is said about building a model is not logged: the training will say it."""
    logger = logging.getLogger("llmcls.model")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def tensors_of(module: nn.Module) -> Iterator[torch.Tensor]:
    """All tensors that a module keeps on its device, also those that describe 4-bit weights."""
    for tensor in (*module.parameters(), *module.buffers()):
        yield tensor
        state = getattr(tensor, "quant_state", None)
        if state is not None:
            yield from (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)


def _count(parameter: nn.Parameter) -> int:
    """Weights in a parameter; a 4-bit tensor stores several in an element."""
    state = getattr(parameter, "quant_state", None)
    return int(parameter.numel() if state is None else state.shape.numel())


def _replace_tensors(model: nn.Module, replacement: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Replace every parameter and buffer of a model; a 4-bit weight becomes a plain parameter with the same state."""
    shared: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in shared:
                new = nn.Parameter(replacement(parameter), parameter.requires_grad)
                state = getattr(parameter, "quant_state", None)
                if state is not None:
                    _replace_state(state, replacement)
                    new.quant_state = state  # type: ignore[attr-defined]
                shared[id(parameter)] = new
            setattr(module, name, shared[id(parameter)])
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, replacement(buffer))


def _replace_state(state: Any, replacement: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Replace the tensors of the state of a 4-bit weight."""
    for part, names in ((state, ("absmax", "code", "offset")), (state.state2, ("absmax", "code"))):
        for name in names:
            setattr(part, name, replacement(getattr(part, name)))


class KnownValues(TorchFunctionMode):
    """Answers what a forward pass asks about values, which fake tensors do not have.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each text: so many are selected by a mask of the real tokens.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        super().__init__()
        self.tokens = sum(lengths)
        self._find_packed: Any = None

    def __enter__(self) -> KnownValues:
        # transformers looks whether the positions restart in a row; those that it is given never do.
        self._find_packed = masking_utils.find_packed_sequence_indices
        masking_utils.find_packed_sequence_indices = lambda *_: None
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        masking_utils.find_packed_sequence_indices = self._find_packed

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name == "__bool__":
            # Asked of long contexts and of masks without padding: neither is what is traced.
            return False
        if name == "__getitem__" and isinstance(args[1], torch.Tensor) and args[1].dtype == torch.bool:
            values, mask = args
            return values.flatten(0, mask.dim() - 1)[torch.arange(self.tokens)]
        return function(*args, **(kwargs or {}))
