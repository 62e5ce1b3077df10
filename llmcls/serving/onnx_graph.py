"""The ONNX graph of an exported folder: token ids and mask in, logits out, for any number of texts of any length."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llmcls.common.files import read_json, write_json
from llmcls.common.optional import OptionalImport
from llmcls.common.user_error import UserError
from llmcls.serving.classify import GRAPH, onnx_network
from llmcls.serving.modelling import FILE
from llmcls.serving.servers import SERVERS

# Texts and tokens of the example from which the graph is traced. Not 1, which torch takes for a constant.
TRACED = (3, 11)
# Others, with which it is tried; the longest length that the model reads is added.
TRIED = ((1, 1), (1, 2), (2, 1), (5, 33))
# The largest difference of a logit from PyTorch, relative to the largest one, or to 1. A wrong shape is far above.
SHAPE_TOLERANCE = 1e-2

ONNX = OptionalImport("--onnx", "onnx")


class _Logits(nn.Module):
    """The part of a `transformers` classifier that becomes a graph."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.network(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def require_onnx() -> None:
    """Refuse to continue without the packages.

    Raises
    ------
    UserError
        If one is missing.
    """
    with ONNX:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    ONNX.require()


def write_onnx(source: Path, folder: Path, int8: bool) -> None:
    """Write the graph of an exported folder, and the files beside its weights.

    Parameters
    ----------
    source : Path
        A folder with float32 weights, as `llmcls.serving.export.write_export` writes it.
    folder : Path
        Where to write.
    int8 : bool
        Round the matrices to 8 bits; what they are multiplied with is rounded while it runs.

    Raises
    ------
    UserError
        If the architecture has no graph, or the graph differs from it for some number of texts or tokens.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    # The only code in the folder is the modelling file of this package.
    network: Any = AutoModelForSequenceClassification.from_pretrained(source, trust_remote_code=True).float().eval()
    network.config.use_cache = False
    longest = AutoTokenizer.from_pretrained(source).model_max_length
    for file in source.iterdir():
        if file.is_file() and ".safetensors" not in file.name and file.name not in (FILE, SERVERS):
            shutil.copyfile(file, folder / file.name)
    config = read_json(source / "config.json")
    config.pop("auto_map", None)
    write_json(folder / "config.json", config)
    logits = _Logits(network).eval()
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        place = Path(scratch) if int8 else folder
        trace(logits, place / GRAPH)
        try_shapes(logits, place, [*TRIED, (2, longest)])
        if int8:
            round_to_int8(place / GRAPH, folder / GRAPH)


def trace(logits: nn.Module, path: Path) -> None:
    """Write the graph of a network, with the number of texts and tokens free.

    Raises
    ------
    UserError
        If torch cannot export it.
    """
    sizes = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens")}
    ids, mask = example(logits, *TRACED)
    try:
        with torch.no_grad(), _quiet():
            torch.onnx.export(
                logits,
                (),
                path,
                kwargs={"input_ids": ids, "attention_mask": mask},
                dynamic_shapes={"input_ids": sizes, "attention_mask": sizes},
                input_names=["input_ids", "attention_mask"],
                output_names=["logits"],
                dynamo=True,
                external_data=True,
                verbose=False,
            )
    except (RuntimeError, ValueError, TypeError, AssertionError, torch.onnx.errors.OnnxExporterError) as error:
        raise UserError(
            f"torch cannot export {type(logits.network).__name__} to ONNX: {_first_line(error)}; leave out --onnx"
        ) from error


def try_shapes(logits: nn.Module, folder: Path, shapes: list[tuple[int, int]]) -> None:
    """Compare a graph with the network for numbers of texts and tokens that were not traced.

    Raises
    ------
    UserError
        If it fails or differs for one of them.
    """
    run = onnx_network(folder, "cpu")
    for texts, tokens in shapes:
        ids, mask = example(logits, texts, tokens)
        with torch.no_grad():
            expected = logits(ids, mask).numpy()
        try:
            difference = np.abs(run(ids.numpy(), mask.numpy()) - expected).max() / max(1, np.abs(expected).max())
        # The exceptions of ONNX Runtime have no public base class of their own.
        except Exception as error:
            raise UserError(
                f"the ONNX graph does not take {texts} texts of {tokens} tokens: {_first_line(error)}; leave out --onnx"
            ) from error
        # Not "difference > SHAPE_TOLERANCE", which a NaN would pass.
        if not difference <= SHAPE_TOLERANCE:
            raise UserError(
                f"the ONNX graph is wrong for {texts} texts of {tokens} tokens (relative difference of a logit "
                f"{difference:.1e}, allowed {SHAPE_TOLERANCE:.0e}); leave out --onnx"
            )


def example(logits: nn.Module, texts: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Random token ids and their mask, int64 [texts, tokens] each; the second half of the first text is padding."""
    network: Any = logits.network
    config: Any = network.config.get_text_config()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (texts, tokens), generator=generator)
    padding = config.pad_token_id
    # A classifier of transformers finds the end of a text by its padding.
    ids[ids == padding] = padding + 1 if padding == 0 else padding - 1
    mask = torch.ones_like(ids)
    if texts > 1 and tokens > 1:
        ids[0, (tokens + 1) // 2 :] = padding
        mask[0, (tokens + 1) // 2 :] = 0
    return ids, mask


def round_to_int8(source: Path, target: Path) -> None:
    """Write a graph with its matrices rounded to 8 bits, one scale for each column."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8, use_external_data_format=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks of the exporters, which a user can do nothing about."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:120]
