"""Runs the real training step on fake CUDA tensors, for test_training_step.py: ``worker.py GUARD.so``.

Prints one JSON object: case to the devices of its loss and optimizer state, and the host synchronisations found while
its micro-batches ran. A process of its own, because it changes torch for good.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before torch is imported, so that it finds the hooks.
ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)

import bitsandbytes  # noqa: E402, F401  (looks for devices while it is imported, so before there seems to be one)
import numpy as np  # noqa: E402
import peft  # noqa: E402
import torch  # noqa: E402
import transformers.masking_utils  # noqa: E402
from accelerate.utils import DistributedType  # noqa: E402
from torch._subclasses import FakeTensorMode  # noqa: E402
from transformers import AutoConfig, AutoModelForSequenceClassification  # noqa: E402

from llmcls.data.batches import collate, plan_epoch  # noqa: E402
from llmcls.data.labels import LabelSpace  # noqa: E402
from llmcls.data.splits import Split  # noqa: E402
from llmcls.engine import full_state  # noqa: E402
from llmcls.model.classifier import Classifier  # noqa: E402
from llmcls.model.packed_forward import PackedForward  # noqa: E402
from llmcls.model.pooling import add_attention_query  # noqa: E402
from llmcls.recipe.schema import DataSection, ExpSection, ModelSection, Recipe, TrainSection  # noqa: E402
from llmcls.results.run_folder import RunFolder  # noqa: E402
from llmcls.training.loop import optimizer_step  # noqa: E402
from llmcls.training.setup import TrainingSetup  # noqa: E402
from tests.fake_cuda.cases import CASES  # noqa: E402

LABELS = ["a", "b", "c", "d"]
SIZES = {
    "vocab_size": 100, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0, "num_labels": 4,
}  # fmt: skip
synchronisations: Counter[str] = Counter()
watching = False


class OneGpu:
    """What the loop asks of an accelerator, for one process with one GPU."""

    device, num_processes, process_index, is_main_process = torch.device("cuda", 0), 1, 0, True
    distributed_type = DistributedType.NO

    class gradient_state:
        @staticmethod
        def _set_sync_gradients(_: bool) -> None: ...

    def no_sync(self, _: Any) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def clip_grad_norm_(self, parameters: Any, norm: float) -> None:
        torch.nn.utils.clip_grad_norm_(parameters, norm)


def pretend_there_is_a_gpu() -> None:
    """Answer what torch asks the CUDA runtime, and note every host synchronisation."""
    torch.cuda.is_available = lambda: True
    torch.cuda.is_bf16_supported = lambda *_, **__: True
    torch.cuda.manual_seed_all = lambda _: None
    torch.cuda._is_in_bad_fork = lambda: False
    torch.cuda.get_rng_state = lambda *_, **__: torch.zeros(16, dtype=torch.uint8)
    torch.cuda.set_rng_state = lambda *_, **__: None
    pinned: list[torch.Tensor] = []

    def pin_memory(self: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        pinned.append(self)
        return self

    torch.Tensor.pin_memory = pin_memory
    # Fake tensors would be taken for a trace.
    transformers.masking_utils.is_tracing = lambda *_, **__: False

    def where() -> str:
        frames = [f for f in traceback.extract_stack()[:-2] if "worker.py" not in f.filename][-3:]
        return " <- ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))

    def noted(kind: str, real: Callable[..., Any], instead: Any) -> Callable[..., Any]:
        def method(self: torch.Tensor) -> Any:
            if not watching:
                return real(self)
            synchronisations[f"{kind} {where()}"] += 1
            return instead

        return method

    for kind, instead in (("__bool__", False), ("item", 1.0), ("__float__", 1.0), ("__int__", 1), ("tolist", [1])):
        setattr(torch.Tensor, kind, noted(kind, getattr(torch.Tensor, kind), instead))
    real_to = torch.Tensor.to

    def to(self: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        moved = real_to(self, *arguments, **options)
        to_gpu = watching and self.device.type == "cpu" and moved.device.type == "cuda"
        # A copy from pageable memory waits for the stream, and so does one that is not asked not to.
        if to_gpu and not (options.get("non_blocking") and any(self is tensor for tensor in pinned)):
            synchronisations[f"pageable copy {where()}"] += 1
        return moved

    torch.Tensor.to = to
    real_tensor = torch.tensor

    def tensor(*arguments: Any, **options: Any) -> torch.Tensor:
        if watching and torch.device(options.get("device") or "cpu").type == "cuda":
            synchronisations[f"pageable copy {where()}"] += 1
        return real_tensor(*arguments, **options)

    torch.tensor = tensor
    real_getitem = torch.Tensor.__getitem__

    def getitem(self: torch.Tensor, index: Any) -> Any:
        if watching and torch.is_tensor(index) and index.dtype == torch.bool and index.device.type == "cuda":
            synchronisations["boolean index"] += 1
            # As many rows as the mask would select at most: a fake tensor has no values.
            return self.flatten(0, index.dim() - 1)[: self.shape[0]]
        return real_getitem(self, index)

    torch.Tensor.__getitem__ = getitem


def build(
    kind: str, packs: bool = True, checkpointing: bool = False, full: bool = False, dora: bool = False,
    pooling: str = "last",
) -> Classifier:  # fmt: skip
    """A classifier as `build_classifier` makes it, without files."""
    sizes = {k: v for k, v in SIZES.items() if kind != "bert" or k not in ("num_key_value_heads", "head_dim")}
    config = AutoConfig.for_model(kind, **sizes)
    network = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32 if full else torch.bfloat16)
    head = "classifier" if kind == "bert" else "score"
    getattr(network, head).to(torch.float32)
    if checkpointing:
        network.gradient_checkpointing_enable({"use_reentrant": False})
    packed = PackedForward(network, pooling, flash=True).attach() if packs else None
    if pooling == "attention":
        add_attention_query(network)
    model: Any = network
    if not full:
        adapter = peft.LoraConfig(
            task_type="SEQ_CLS", r=4, target_modules="all-linear", modules_to_save=[head], lora_dropout=0.05,
            use_dora=dora,
        )  # fmt: skip
        model = peft.get_peft_model(network, adapter)
    return Classifier(model, packed, pooling).train()


def move_to_fake_gpu(model: torch.nn.Module) -> None:
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    moved = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
                    is_parameter = tensors is module._parameters
                    tensors[name] = torch.nn.Parameter(moved, tensor.requires_grad) if is_parameter else moved


def step(kind: str, **changes: Any) -> dict[str, Any]:
    """One optimizer step of a case."""
    global watching
    synchronisations.clear()
    model = build(kind, **changes)
    # No micro-batch has a single text: fake tensors of one element are computed for real, which needs a real GPU.
    lengths = np.array([5, 9, 7, 30, 17, 4, 8, 8, 20, 11, 6, 6], dtype=np.int32)
    tokens = [np.arange(length, dtype=np.int32) % 50 for length in lengths]
    values = (np.arange(48).reshape(12, 4) % 3 == 0).astype(np.float32)
    split = Split("train", "train.csv", tokens, lengths, values, None)
    recipe = Recipe(
        DataSection("d", "t.csv", LABELS), ModelSection("m"), TrainSection(num_train_epochs=9), ExpSection()
    )
    labels = LabelSpace(LABELS, LABELS, "multi_label_classification")
    setup = TrainingSetup(recipe, 0, RunFolder(Path()), OneGpu(), labels, split, None, 12, model.packs, 64)
    plan = next(iter(plan_epoch(lengths, setup.batches, 0, 0)))
    with FakeTensorMode(allow_non_fake_inputs=True):
        move_to_fake_gpu(model)
        forward = model.forward

        def autocast_forward(*arguments: Any) -> torch.Tensor:
            with torch.autocast("cuda", dtype=torch.bfloat16):
                return forward(*arguments)

        model.forward = autocast_forward
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
        assert setup.loss_of is not None
        watching = True
        batches = [collate(split, rows, 0, model.packs) for rows in plan.micro_batches[0]]
        loss = optimizer_step(setup, model, optimizer, plan, batches, 0).loss_sum
        watching = False
        # As a checkpoint holds it: on the CPU.
        saved = {
            name: {k: torch.empty(v.shape, dtype=v.dtype) for k, v in optimizer.state[p].items()}
            for name, p in full_state.trained_parameters(model).items()
        }
        resumed = torch.optim.AdamW(trained, lr=1e-4, fused=True)
        accelerator: Any = OneGpu()
        accelerator.distributed_type = "NO"
        full_state.load_optimizer_state(accelerator, model, resumed, saved)
        return {
            "loss": loss.device.type,
            "trained parameters": len(trained),
            "parameters with state": len(optimizer.state),
            "micro-batches": len(plan.micro_batches[0]),
            "synchronisations": dict(synchronisations),
            "state": sorted({v.device.type for state in optimizer.state.values() for v in state.values()}),
            "resumed state": sorted({v.device.type for state in resumed.state.values() for v in state.values()}),
        }


def main() -> None:
    global watching
    pretend_there_is_a_gpu()
    results: dict[str, Any] = {}
    for case, (kind, changes) in CASES.items():
        try:
            results[case] = step(kind, **changes)
        except Exception:
            results[case] = {"error": traceback.format_exc()[-1500:]}
        finally:
            watching = False
    print(json.dumps(results))


if __name__ == "__main__":
    main()
