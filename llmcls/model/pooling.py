"""Pooling: from the states of a text's tokens to the one state that the head reads. No padding id is looked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn


class AttentionHead(nn.Linear):
    """A linear head with the learned query of attention pooling beside its weights.

    A subclass, so that ``score.weight`` keeps its name in every checkpoint. The query begins at zero: as a mean.
    """

    def __init__(self, head: nn.Linear) -> None:
        super().__init__(head.in_features, head.out_features, bias=head.bias is not None)
        self.weight, self.bias = head.weight, head.bias
        self.attend = nn.Linear(head.in_features, 1, bias=False, device=head.weight.device, dtype=head.weight.dtype)
        nn.init.zeros_(self.attend.weight)


def pool(states: torch.Tensor, lengths: torch.Tensor, kind: str, head: Any) -> torch.Tensor:
    """One state a text.

    Parameters
    ----------
    states: float [tokens, hidden], text after text. lengths: int64 [texts], on the same device.
    kind: "last" token; "mean" of all; "attention": their mean weighted by softmax(w h) within the text, with w of
        ``head`` (Yang et al. 2016, "Hierarchical Attention Networks", equation 6, without its hidden layer).

    Returns
    -------
    float [texts, hidden], in float32 but for "last"
    """
    if kind == "last":
        return states[lengths.cumsum(0) - 1]
    texts = len(lengths)
    owner = torch.repeat_interleave(torch.arange(texts, device=states.device), lengths, output_size=len(states))
    wide = states.float()
    if kind == "mean":
        weights = (1.0 / lengths)[owner, None]
    else:
        with torch.autocast(states.device.type, enabled=False):
            scores = head.attend(wide.to(head.attend.weight.dtype)).float()[:, 0]
        highest = torch.full((texts,), -torch.inf, device=scores.device).scatter_reduce(0, owner, scores, "amax")
        exponentials = (scores - highest.detach()[owner]).exp()
        sums = torch.zeros(texts, device=scores.device).index_add(0, owner, exponentials)
        weights = (exponentials / sums[owner])[:, None]
    return torch.zeros(texts, wide.shape[1], device=wide.device).index_add(0, owner, wide * weights)


def add_attention_query(network: Any) -> None:
    """Give a decoder's head the query of attention pooling."""
    network.score = AttentionHead(network.score)


def load_attention_query(network: Any, folder: Path) -> None:
    """Read the query of a wholly saved model, which `transformers` does not know."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            if "score.attend.weight" in file.keys():  # noqa: SIM118
                network.score.attend.weight.data.copy_(file.get_tensor("score.attend.weight"))
                return
    raise FileNotFoundError(f"{folder} holds no score.attend.weight; the model was not saved whole")
