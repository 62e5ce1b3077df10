"""Pooling: reduce the token states of each text to the one state that the head reads.

Texts are separated by their lengths, so pooling never looks for a padding id.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn


class AttentionHead(nn.Linear):
    """A linear head that also holds the learned query of attention pooling.

    A subclass of `nn.Linear` keeps the name ``score.weight`` in every checkpoint. The query starts at zero, which makes
    attention pooling equal to the mean.

    Parameters
    ----------
    head : nn.Linear
        The head to extend; its weights are shared, not copied.
    """

    def __init__(self, head: nn.Linear) -> None:
        super().__init__(head.in_features, head.out_features, bias=head.bias is not None)
        self.weight, self.bias = head.weight, head.bias
        self.attend = nn.Linear(head.in_features, 1, bias=False, device=head.weight.device, dtype=head.weight.dtype)
        nn.init.zeros_(self.attend.weight)


def pool(states: torch.Tensor, lengths: torch.Tensor, kind: str, head: Any) -> torch.Tensor:
    """Pool the token states of each text.

    Parameters
    ----------
    states : float [tokens, hidden]
        Token states, text after text.
    lengths : int64 [texts]
        Tokens of each text, on the same device.
    kind : str
        "last", "mean" or "attention": the state of the last token, the mean of all tokens, or their mean weighted by
        softmax(w h) within the text, where w is the query of ``head``.
    head : nn.Module
        An `AttentionHead` for "attention"; not used otherwise.

    Returns
    -------
    float [texts, hidden]
        In float32; for "last", in the dtype of ``states``.

    Notes
    -----
    Attention pooling is that of Yang et al. 2016, "Hierarchical Attention Networks", equation 6, without its hidden
    layer.

    Examples
    --------
    >>> states = torch.tensor([[1.0], [3.0], [5.0]])
    >>> pool(states, torch.tensor([2, 1]), "mean", None).tolist()
    [[2.0], [5.0]]
    >>> pool(states, torch.tensor([2, 1]), "last", None).tolist()
    [[3.0], [5.0]]
    """
    if kind == "last":
        return states[lengths.cumsum(0) - 1]
    texts = len(lengths)
    text_index = torch.repeat_interleave(torch.arange(texts, device=states.device), lengths, output_size=len(states))
    states = states.float()
    if kind == "mean":
        weights = (1.0 / lengths)[text_index, None]
    else:
        with torch.autocast(states.device.type, enabled=False):
            scores = head.attend(states.to(head.attend.weight.dtype)).float()[:, 0]
        highest = torch.full((texts,), -torch.inf, device=scores.device).scatter_reduce(0, text_index, scores, "amax")
        exponentials = (scores - highest.detach()[text_index]).exp()
        sums = torch.zeros(texts, device=scores.device).index_add(0, text_index, exponentials)
        weights = (exponentials / sums[text_index])[:, None]
    return torch.zeros(texts, states.shape[1], device=states.device).index_add(0, text_index, states * weights)


def add_attention_query(network: Any) -> None:
    """Replace the head of a decoder by one with the query of attention pooling."""
    network.score = AttentionHead(network.score)


def load_attention_query(network: Any, folder: Path) -> None:
    """Read the query of attention pooling from a completely saved model; `transformers` ignores this tensor.

    Raises
    ------
    FileNotFoundError
        If no file in ``folder`` has the query.
    """
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            if "score.attend.weight" in file.keys():  # noqa: SIM118
                network.score.attend.weight.data.copy_(file.get_tensor("score.attend.weight"))
                return
    raise FileNotFoundError(f"{folder} has no score.attend.weight; the model in it is incomplete")
