"""Read a decoder and its tokenizer from a GGUF file: ``python -m llmcls.model.gguf_weights FILE FOLDER``.

Needs the package ``gguf``, which is not a dependency; `llmcls.model.download` starts this module where it is installed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def convert_gguf(file: Path, folder: Path) -> None:
    """Save the model of a GGUF file as an ordinary folder, with weights in bfloat16.

    Parameters
    ----------
    file : Path
    folder : Path
    """
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    config = read.config
    if hasattr(config, "quantization_config"):
        # transformers refuses to save a model that it read from GGUF, although the weights are plain numbers now.
        del config.quantization_config
    model: Any = type(read)(config)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    convert_gguf(Path(sys.argv[1]), Path(sys.argv[2]))
