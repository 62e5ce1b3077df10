"""The modelling file of an exported decoder that pools otherwise than `transformers` does, or reads both ways.

The text below becomes ``modeling_classifier.py`` in the exported folder. `transformers` runs it if it is allowed to
(``trust_remote_code``).
"""

from __future__ import annotations

FILE = "modeling_classifier.py"
CLASS = "PooledClassifier"

_SOURCE = '''"""A sequence classifier with {pooling} pooling{direction}. Written by llmcls."""

import torch
from torch import nn
from transformers import {base}
from transformers.modeling_outputs import SequenceClassifierOutput


class {name}({base}):
    """``{base}`` whose head reads all tokens of a text, not the last one."""

    def __init__(self, config):
        super().__init__(config)
        if config.pooling == "attention":
            self.score.attend = nn.Linear(self.score.in_features, 1, bias=False)
            self.post_init()

    def forward(self, input_ids, attention_mask=None, **kwargs):
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        # Padding may be on either side: positions count real tokens only.
        positions = (real.cumsum(-1) - 1).clamp(min=0)
        rows, tokens = input_ids.shape
        mask = real.bool()
        seen = mask[:, None, None, :].expand(rows, 1, tokens, tokens)
        if not self.config.bidirectional:
            seen = seen & torch.ones(tokens, tokens, dtype=torch.bool, device=mask.device).tril()
        # A token of padding sees itself, so that no row of attention is empty.
        seen = seen | torch.eye(tokens, dtype=torch.bool, device=mask.device)
        hidden = self.base_model(
            input_ids=input_ids, attention_mask=seen, position_ids=positions, use_cache=False
        ).last_hidden_state
        if self.config.pooling == "last":
            pooled = hidden[torch.arange(rows, device=hidden.device), (positions * real).argmax(-1)]
        else:
            states = hidden.float()
            if self.config.pooling == "mean":
                scores = torch.zeros(rows, tokens, device=hidden.device)
            else:
                scores = self.score.attend(states.to(self.score.weight.dtype)).float()[..., 0]
            weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
            pooled = (states * weights[..., None]).sum(1)
        logits = self.score(pooled.to(self.score.weight.dtype))
        return SequenceClassifierOutput(logits=logits)
'''


def modelling_source(base: str, pooling: str, bidirectional: bool) -> str:
    """The text of the modelling file.

    Parameters
    ----------
    base : str
        The class of `transformers` whose weights the folder holds, such as "LlamaForSequenceClassification".
    pooling : str
        "last", "mean" or "attention".
    bidirectional : bool
        Whether every token sees the whole text.
    """
    direction = ", every token sees the whole text" if bidirectional else ""
    return _SOURCE.format(base=base, name=CLASS, pooling=pooling, direction=direction)
