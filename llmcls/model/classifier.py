"""The classifier: token ids in, one row of logits per text out, from packed or padded texts.

A text is pooled at its last real token. Looking for "the last token that is not the pad id" is wrong if the pad id
occurs in texts. Causal models get no padding mask, because no token sees what is to its right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from llmcls.data.batches import send
from llmcls.model.four_bit import quantized_layers
from llmcls.model.packed_forward import PackedForward
from llmcls.model.pooling import pool


class Classifier(nn.Module):
    """The model that every engine sees: one module with one ``forward``.

    Parameters
    ----------
    model : nn.Module
        A `peft.PeftModel` or, for full fine-tuning, a `transformers` sequence classifier.
    packed : PackedForward, optional
        Attached to the model if micro-batches are packed.
    pooling : str
        "last", "mean" or "attention": what the head of a decoder reads.
    window_pooling : str
        "mean" or "max": how the logits of the windows of a text become one.
    """

    def __init__(
        self, model: nn.Module, packed: PackedForward | None = None, pooling: str = "last", window_pooling: str = "mean"
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.packed, self.pooling, self.window_pooling = packed, pooling, window_pooling
        # FSDP's automatic wrapping asks the outermost module which layers to shard.
        self._no_split_modules = list(self.sequence_classifier._no_split_modules or [])
        self.config = self.sequence_classifier.config

    @property
    def packs(self) -> bool:
        """Whether micro-batches are packed."""
        return self.packed is not None

    @property
    def sequence_classifier(self) -> Any:
        """The `transformers` model, without the adapter around it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def is_decoder(self) -> bool:
        """Whether this is a causal decoder, whose ``score`` head reads a pooled state."""
        return hasattr(self.sequence_classifier, "score")

    def merge_adapter(self) -> None:
        """Add a float32 adapter to its float32 weights permanently, which makes prediction cheaper.

        With fewer bits the sum would be rounded and the logits would differ, so there the adapter stays separate.
        """
        weights = [p for n, p in self.named_parameters() if "score" not in n]
        exact = all(w.dtype == torch.float32 for w in weights) and not quantized_layers(self)
        if exact and hasattr(self.model, "merge_and_unload"):
            self.model = self.model.merge_and_unload()

    def forward(
        self, input_ids: torch.Tensor, lengths: Sequence[int], windows: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Logits of texts.

        Parameters
        ----------
        input_ids : int64 [texts, tokens] or [tokens]
            Right-padded, or packed: text after text (only if `packs`).
        lengths : sequence of int
            Real tokens of each text, at least 1. On the host, where a pass is planned.
        windows : sequence of int, optional
            The number of texts that are the windows of each row. Their logits become the logits of the row.

        Returns
        -------
        logits : float32 [rows, labels]
        """
        logits = self._text_logits(input_ids, lengths)
        if windows is None:
            return logits
        parts = logits.split(list(windows))
        return torch.stack([p.amax(0) if self.window_pooling == "max" else p.mean(0) for p in parts])

    def _text_logits(self, input_ids: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        network = self.sequence_classifier
        if self.packed is not None:
            if input_ids.dim() == 2:
                input_ids = torch.cat([text[:length] for text, length in zip(input_ids, lengths, strict=True)])
            pooled = self.packed.states(input_ids, list(lengths), network.score)
        else:
            sizes = send(torch.tensor(lengths), input_ids.device)
            real = torch.arange(input_ids.shape[1], device=input_ids.device) < sizes[:, None]
            if not self.is_decoder:
                return network(input_ids=input_ids, attention_mask=real.long()).logits.float()
            # A real token of a causal model never sees the padding to its right, so it needs no mask, and without
            # one attention uses its fastest causal kernel. A KV cache would be built and thrown away.
            hidden = network.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
            if self.pooling == "last":
                # The same as below, without waiting for the device to count the real tokens.
                pooled = hidden[torch.arange(len(sizes), device=hidden.device), sizes - 1]
            else:
                pooled = pool(hidden[real], sizes, self.pooling, network.score)
        # The head decides between close scores, so it computes in the precision it is stored in.
        with torch.autocast(device_type=pooled.device.type, enabled=False):
            return network.score(pooled.to(next(network.score.parameters()).dtype)).float()


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Trainable and total parameters; a 4-bit tensor counts as the weights it stores."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = 0
    for p in model.parameters():
        quantized = getattr(p, "quant_state", None) if type(p).__name__ == "Params4bit" else None
        total += p.numel() if quantized is None else quantized.shape.numel()
    return trainable, total
