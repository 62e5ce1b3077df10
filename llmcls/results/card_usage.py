"""The part of a model card that says how to use the model: commands and code that can be copied."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass

from llmcls.results.markdown import code_block

EXAMPLE = "A text to classify."


@dataclass(frozen=True)
class Home:
    """Where a card lies, which decides what its reader can do.

    Attributes
    ----------
    name : str
        The folder, or the repository on the hub, as commands name it.
    on_hub : bool
        Whether ``name`` is a repository on the hub.
    exported : bool
        Whether the folder is an exported one, which plain `transformers` loads, and not that of a run.
    onnx : bool
        Whether an exported folder has an ONNX graph in place of weights.
    proof : str
        What the comparison of an exported folder with its run found.
    """

    name: str
    on_hub: bool = False
    exported: bool = False
    onnx: bool = False
    proof: str = ""


def usage(home: Home) -> list[str]:
    """Five ways to use a model: paragraphs of Markdown."""
    return _of_export(home) if home.exported else _of_run(home)


def _of_run(home: Home) -> list[str]:
    """What can be done with the folder of a run, which needs llmcls and the base model."""
    _, run, path = _local_folder(home)
    return [
        "It needs llmcls. Thresholds and calibration are applied, except in a pipeline.",
        *([code_block("bash", _download(home))] if home.on_hub else []),
        "### Files and standard input",
        code_block(
            "bash",
            f"python -m llmcls.predict --run {run} --input texts.csv --output predictions.jsonl\n"
            f'python -m llmcls.predict --run {run} --text "{EXAMPLE}"',
        ),
        "### Python",
        code_block(
            "python",
            f"from llmcls import Classifier\n\nclassifier = Classifier.load({path})\n"
            f'classifier.predict_labels(["{EXAMPLE}"])',
        ),
        "### transformers",
        code_block("bash", f"python -m llmcls.export --run {run} --out exported"),
        code_block("python", _pipeline("exported")),
        "### scikit-learn",
        code_block(
            "python",
            "from llmcls import Classifier\nfrom sklearn.model_selection import cross_val_score\n\n"
            f'cross_val_score(Classifier.load({path}), texts, labels, scoring="f1_micro")',
        ),
        "### Server",
        _server(run),
    ]


def _of_export(home: Home) -> list[str]:
    """What can be done with an exported folder; most of it does not need llmcls."""
    folder, _, path = _local_folder(home)
    script = f"python {shlex.quote(f'{folder}/classify.py')} texts.txt predictions.jsonl"
    library = "onnxruntime" if home.onnx else "torch"
    return [
        f"`decisions.json` has thresholds and calibration. `classify.py` applies them; it needs {library}, "
        "transformers and numpy.",
        "### Files",
        code_block("bash", f"{_download(home)}\n{script}" if home.on_hub else script),
        "### Python",
        code_block(
            "python",
            f"import sys\nfrom pathlib import Path\n\nsys.path.append({path})\nfrom classify import Model\n\n"
            f'model = Model(Path({path}))\nmodel.labels(model.probabilities(["{EXAMPLE}"]))',
        ),
        *(_graph(path) if home.onnx else _plain_transformers(home.name)),
        "### scikit-learn",
        "With llmcls and the run from which this folder was exported:",
        code_block("python", 'from llmcls import Classifier\n\nclassifier = Classifier.load("RUN")'),
        "### Server",
        "With llmcls and the run:",
        _server("RUN"),
    ]


def _plain_transformers(name: str) -> list[str]:
    return [
        "### transformers",
        "A pipeline knows neither thresholds nor calibration.",
        code_block("python", _pipeline(name)),
    ]


def _graph(path: str) -> list[str]:
    """How the ONNX graph is called by itself; ``path`` is quoted as in Python."""
    return [
        "### ONNX Runtime",
        "The graph takes token ids and their mask, int64 [texts, tokens], padded on the right, and returns logits.",
        code_block(
            "python",
            "import numpy as np\nimport onnxruntime\nfrom transformers import AutoTokenizer\n\n"
            f"tokenizer = AutoTokenizer.from_pretrained({path})\n"
            f'session = onnxruntime.InferenceSession({path} + "/model.onnx")\n'
            'how = {"padding": True, "padding_side": "right", "truncation": True, "return_tensors": "np"}\n'
            f'given = tokenizer(["{EXAMPLE}"], **how)\n'
            'names = ("input_ids", "attention_mask")\n'
            'session.run(["logits"], {name: given[name].astype(np.int64) for name in names})',
        ),
    ]


def _local_folder(home: Home) -> tuple[str, str, str]:
    """The folder of the model on a reader's disk, as it is, in a shell, and in Python."""
    folder = home.name.rpartition("/")[2] if home.on_hub else home.name
    return folder, shlex.quote(folder), json.dumps(folder, ensure_ascii=False)


def _download(home: Home) -> str:
    return f"hf download {shlex.quote(home.name)} --local-dir {_local_folder(home)[1]}"


def _server(run: str) -> str:
    """Commands that start a server and ask it; ``run`` is quoted."""
    body = json.dumps({"texts": [EXAMPLE]})
    ask = f"curl localhost:8000/classify -H 'Content-Type: application/json' -d '{body}'"
    return code_block("bash", f"python -m llmcls.serve --run {run} --port 8000\n{ask}")


def _pipeline(model: str) -> str:
    """Code that classifies with a pipeline of `transformers`."""
    return (
        "from transformers import pipeline\n\n"
        f'classify = pipeline("text-classification", model={json.dumps(model, ensure_ascii=False)}, top_k=None)\n'
        f'classify("{EXAMPLE}", truncation=True)'
    )
