"""Classify texts with the model in this folder.

Needs transformers, numpy and torch; if the model is an ONNX graph, onnxruntime instead of torch.

    python classify.py texts.txt predictions.jsonl

``texts.txt`` has one text per line; a ``.jsonl`` file has one object with "text", and optionally "id", per line. Each
line of the output has the id, the probability of every label, and the labels that reach their threshold.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

HERE = Path(__file__).resolve().parent
GRAPH = "model.onnx"

# Logits [texts, labels] of token ids and mask, int64 [texts, tokens] each.
Network = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Model:
    """The model of an exported folder, with its calibration and thresholds.

    Parameters
    ----------
    folder : Path
    device : str, optional
        Default: a GPU if there is one.
    trust_remote_code : bool
        Whether to run the modelling file of the folder, if it has one.
    """

    def __init__(self, folder: Path, device: str | None = None, trust_remote_code: bool = False) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.names = [config["id2label"][str(i)] for i in range(len(config["id2label"]))]
        self.multi_label = config["problem_type"] == "multi_label_classification"
        if (folder / GRAPH).exists():
            self.network = onnx_network(folder, device)
        else:
            self.network = torch_network(folder, device, trust_remote_code)
        self.decisions = json.loads((folder / "decisions.json").read_text(encoding="utf-8"))
        # What an empty text becomes, if the tokenizer would leave no token of it.
        special = (self.tokenizer.bos_token, self.tokenizer.eos_token, self.tokenizer.pad_token)
        self.empty = "" if self.tokenizer("")["input_ids"] else next(token for token in special if token)

    def probabilities(self, texts: list[str], batch: int = 16) -> np.ndarray:
        """The calibrated probability of every label, float64 [texts, labels]."""
        # As in training: white space at the ends of a text would be tokens.
        texts = [text.strip() for text in texts]
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found = np.zeros((len(texts), len(self.names)))
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            encoded = self.tokenizer(
                [texts[i] or self.empty for i in rows],
                padding=True,
                padding_side="right",
                truncation=True,
                return_tensors="np",
            )
            ids, mask = encoded["input_ids"].astype(np.int64), encoded["attention_mask"].astype(np.int64)
            found[rows] = self.network(ids, mask)
        return self._calibrated(found)

    def labels(self, probabilities: np.ndarray) -> list[list[str]]:
        """The labels of each text."""
        thresholds = np.array([self.decisions["thresholds"][name] for name in self.names])
        if not self.multi_label:
            if self.decisions["binary"]:
                chosen = (probabilities[:, 1] >= thresholds[1]).astype(int)
            else:
                chosen = probabilities.argmax(axis=1)
            return [[self.names[i]] for i in chosen]
        marks = probabilities >= thresholds
        if self.decisions["at_least_one"]:
            closest = (_logit(probabilities) - _logit(thresholds)).argmax(axis=1)
            for row in np.flatnonzero(~marks.any(axis=1)):
                marks[row, closest[row]] = True
        for name, ancestors in self.decisions["implies"].items():
            for other in ancestors:
                marks[:, self.names.index(other)] |= marks[:, self.names.index(name)]
        return [[name for name, on in zip(self.names, row, strict=True) if on] for row in marks]

    def _calibrated(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities: sigmoid or softmax of logits / temperature, then the curve of each label."""
        x = logits / self.decisions["calibration"]["temperature"]
        if self.multi_label:
            plain = np.exp(-np.logaddexp(0, -x))
        else:
            shifted = np.exp(x - x.max(axis=1, keepdims=True))
            plain = shifted / shifted.sum(axis=1, keepdims=True)
        curves = self.decisions["calibration"]["curves"]
        if not curves:
            return plain
        mapped = np.stack([np.interp(plain[:, i], c["x"], c["y"]) for i, c in enumerate(curves)], axis=1)
        if self.multi_label:
            return mapped
        sums = mapped.sum(axis=1, keepdims=True)
        return np.where(sums > 0, mapped / np.where(sums > 0, sums, 1), plain)


def torch_network(folder: Path, device: str | None, trust_remote_code: bool) -> Network:
    """The network of a folder with weights, run by torch."""
    import torch
    from transformers import AutoModelForSequenceClassification

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    load = AutoModelForSequenceClassification.from_pretrained
    network: Any = load(folder, dtype="auto", trust_remote_code=trust_remote_code).eval().to(device)

    def logits(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            given = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
            found = network(**{name: tensor.to(device) for name, tensor in given.items()}).logits
        array: np.ndarray = found.double().cpu().numpy()
        return array

    return logits


def onnx_network(folder: Path, device: str | None) -> Network:
    """The network of a folder with an ONNX graph, run by ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # ONNX Runtime takes all cores (0), unless it is told; torch reads this variable itself.
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
    options.log_severity_level = 3
    cpu = ["CPUExecutionProvider"]
    providers = cpu if device == "cpu" else onnxruntime.get_available_providers()
    session = onnxruntime.InferenceSession(folder / GRAPH, options, providers=providers)

    def logits(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        found: np.ndarray = session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0]
        return found

    return logits


def _logit(p: Any) -> Any:
    p = np.clip(p, 1e-9, 1 - 1e-9)
    return np.log(p) - np.log1p(-p)


def read_texts(path: Path) -> Iterator[tuple[str, str]]:
    """Id and text of each row."""
    with path.open(encoding="utf-8") as file:
        for i, line in enumerate(file):
            row = json.loads(line) if path.suffix == ".jsonl" else {"text": line.rstrip("\n")}
            yield str(row.get("id", i)), row["text"]


def main() -> None:
    """Classify a file."""
    parser = argparse.ArgumentParser(description="Classify texts with the model in this folder.")
    parser.add_argument("texts", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--device", help="cpu or cuda; default: a GPU if there is one")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the modelling file in this folder")
    arguments = parser.parse_args()
    model = Model(HERE, arguments.device, arguments.trust_remote_code)
    rows = list(read_texts(arguments.texts))
    found = model.probabilities([text for _, text in rows])
    with arguments.output.open("w", encoding="utf-8") as file:
        for (row_id, _), p, chosen in zip(rows, found, model.labels(found), strict=True):
            scores = {name: round(float(v), 9) for name, v in zip(model.names, p, strict=True)}
            line = {"id": row_id, "probabilities": scores, "labels": chosen}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
