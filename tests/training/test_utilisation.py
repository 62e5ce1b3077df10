from __future__ import annotations

import pytest
import torch
from torch import nn

from llmcls.training.utilisation import share_of_peak, token_flops


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 8)
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])
        self.layers[0].requires_grad_(False)
        self.score = nn.Linear(8, 2)


def test_the_weights_of_the_layers_count_and_trained_ones_count_more() -> None:
    # 64 frozen weights at 4 FLOPs and 64 trained ones at 6; neither biases nor embeddings nor the head.
    assert token_flops(nn.Sequential(Model())) == 64 * 4 + 64 * 6


def test_the_share_is_of_all_gpus_in_the_precision_of_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"name": "NVIDIA H100 80GB HBM3"}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: names["name"])
    gpu = torch.device("cuda")
    assert share_of_peak(989e12, gpu, 2, sixteen_bits=True) == pytest.approx(0.5)
    assert share_of_peak(67e12, gpu, 1, sixteen_bits=False) == pytest.approx(1.0)
    names["name"] = "an unknown card"
    assert share_of_peak(1e12, gpu, 1, sixteen_bits=True) is None
    assert share_of_peak(1e12, torch.device("cpu"), 1, sixteen_bits=True) is None
