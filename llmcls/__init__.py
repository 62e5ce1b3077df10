"""llmcls: fine-tune language models for text classification, from a laptop to a cluster."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["Classifier", "__version__"]


def __getattr__(name: str) -> Any:
    # Loaded when it is asked for, so that commands that need no model start at once.
    if name == "Classifier":
        return importlib.import_module("llmcls.serving.estimator").Classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
