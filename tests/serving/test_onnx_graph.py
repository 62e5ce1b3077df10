from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from llmcls.common.user_error import UserError
from llmcls.results.finished_runs import FinishedRun, open_run
from llmcls.results.run_folder import RunFolder
from llmcls.serving import proof
from llmcls.serving.export import ExportOptions, export_run, write_export
from llmcls.serving.onnx_graph import TRIED, require_onnx, round_to_int8, trace, try_shapes, write_onnx
from llmcls.serving.proof import Speed, measure_speed, prove
from tests.conftest import Experiment
from tests.helpers import read_json, train
from tests.serving.test_export import FAULTS, run_in_this_process

pytestmark = pytest.mark.slow
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")


@pytest.fixture(scope="module")
def run(trained_once: Experiment) -> FinishedRun:
    return open_run(RunFolder(trained_once.runs[0]))


@pytest.fixture(scope="module")
def weights(run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "weights"
    folder.mkdir()
    write_export(run, folder, ExportOptions(onnx=True))
    return folder


@pytest.fixture(scope="module")
def graph(weights: Path) -> Path:
    folder = weights.with_name("graph")
    folder.mkdir()
    write_onnx(weights, folder, int8=False)
    return folder


@pytest.fixture
def copy(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the graph's folder; the proof runs in this process."""
    monkeypatch.setattr(proof, "run_without_llmcls", run_in_this_process(monkeypatch))
    return Path(shutil.copytree(graph, tmp_path / "copy"))


def test_the_graph_answers_as_the_run_did_without_torch(run: FinishedRun, graph: Path, copy: Path) -> None:
    source = (graph / "classify.py").read_text(encoding="utf-8")
    assert source.index("def torch_network") < source.index("import torch\n"), "torch is imported only if it is used"
    found = prove(run, copy, "float32")
    assert (found.rows, found.changed_decisions, found.tolerance) == (40, 0, 1e-5)
    assert found.largest_difference <= 1e-5
    assert not list(graph.glob("*.safetensors"))
    assert read_json(graph / "config.json")["problem_type"] == "multi_label_classification"


@pytest.mark.long
@pytest.mark.parametrize(
    "settings",
    [{"model__pooling": "mean", "model__bidirectional": True}, {"model__pooling": "attention"}],
    ids=["mean, both ways", "attention"],
)
def test_the_graph_has_the_pooling_of_the_run(
    settings: dict[str, Any], write_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "run_without_llmcls", run_in_this_process(monkeypatch))
    recipe = write_recipe(train__max_steps=6, train__train_metrics_rows=0, **settings)
    found = export_run(
        open_run(RunFolder(train(recipe) / "run_0")), tmp_path / "graph", ExportOptions(onnx=True, tolerance=1e-5)
    )
    assert (found.changed_decisions, found.unexplained) == (0, 0)
    assert found.largest_difference <= 1e-5


def test_eight_bits_change_little(run: FinishedRun, graph: Path, copy: Path) -> None:
    (copy / "model.onnx").unlink()
    (copy / "model.onnx.data").unlink()
    round_to_int8(graph / "model.onnx", copy / "model.onnx")
    found = prove(run, copy, "int8")
    assert (found.tolerance, found.unexplained) == (5e-2, 0)
    assert 1e-5 < found.largest_difference <= 5e-2
    assert (copy / "model.onnx.data").stat().st_size < 0.4 * (graph / "model.onnx.data").stat().st_size


def drop_head(folder: Path) -> None:
    """The head of the graph becomes zeros."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(folder / "model.onnx")
    last = [node for node in model.graph.node if node.op_type == "MatMul"][-1]
    (head,) = [weights for weights in model.graph.initializer if weights.name == last.input[1]]
    zeros = np.zeros(list(head.dims), dtype=np.float32)
    head.CopyFrom(numpy_helper.from_array(zeros, head.name))
    (folder / "model.onnx.data").unlink()
    onnx.save(model, folder / "model.onnx")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_breaks_the_proof(fault: str, run: FinishedRun, copy: Path) -> None:
    (drop_head if fault == "the head is dropped" else FAULTS[fault])(copy)
    found = prove(run, copy, "float32")
    assert found.largest_difference > found.tolerance or found.unexplained


class MeanOfEmbeddings(nn.Module):
    """As small as a network with the parts that a graph is made from can be."""

    def __init__(self) -> None:
        super().__init__()
        text = SimpleNamespace(vocab_size=50, pad_token_id=0)
        self.network = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text))
        self.embedding = nn.Embedding(50, 4)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return (self.embedding(input_ids) * attention_mask[..., None]).sum(1)


def test_a_graph_of_one_shape_is_refused(tmp_path: Path) -> None:
    good, other = MeanOfEmbeddings().eval(), MeanOfEmbeddings().eval()
    trace(good, tmp_path / "model.onnx")
    try_shapes(good, tmp_path, [*TRIED, (7, 64)])
    with pytest.raises(UserError, match="is wrong for 5 texts of 33 tokens"):
        try_shapes(other, tmp_path, [(5, 33)])
    example = {"input_ids": torch.ones(3, 11, dtype=torch.long), "attention_mask": torch.ones(3, 11, dtype=torch.long)}
    torch.onnx.export(
        good, (), tmp_path / "model.onnx", kwargs=example, dynamo=True, verbose=False, output_names=["logits"],
        input_names=list(example),
    )  # fmt: skip
    with pytest.raises(UserError, match="does not take 1 texts of 1 tokens"):
        try_shapes(good, tmp_path, [(3, 11), (1, 1)])


def test_what_cannot_become_a_graph_is_refused_in_a_sentence(tmp_path: Path) -> None:
    class Undecidable(MeanOfEmbeddings):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            if input_ids.sum() > 7:
                return super().forward(input_ids, attention_mask)
            return super().forward(input_ids, attention_mask) + 1

    with pytest.raises(UserError, match=r"torch cannot export SimpleNamespace to ONNX: .*leave out --onnx"):
        trace(Undecidable(), tmp_path / "model.onnx")


def test_both_are_timed_on_the_same_texts(graph: Path, weights: Path) -> None:
    speed = measure_speed(graph, weights, ["a novel", "an album"], rounds=1)
    assert (speed.rows, speed.rounds) == (2, 1)
    assert speed.onnx > 0
    assert speed.pytorch > 0
    assert str(Speed(30, 20, 64, 3, 1)) == "ONNX Runtime 30.0 texts/s, PyTorch 20.0 texts/s (1.50 times)"


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"--onnx needs onnxscript, .* pip install 'llmcls\[onnx\]'"):
        require_onnx()
