"""What only a real GPU can tell: values, limits of kernels, waits and memory.

Without a GPU these tests are skipped; `tests/fake_cuda` holds what can be told there.
"""

from __future__ import annotations

import os

import pytest
import torch

# torch looks once in a process, at its first matrix product on a GPU, whether a deterministic training would be one.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

DEVICE = torch.device("cuda")
NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
