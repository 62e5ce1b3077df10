"""Classify texts with the model in this folder. Needs torch, transformers and numpy, and nothing else.

    python classify.py texts.txt predictions.jsonl

``texts.txt`` has one text per line; a ``.jsonl`` file has one object with "text", and optionally "id", per line. Each
line of the output has the id, the probability of every label, and the labels that reach their threshold.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

HERE = Path(__file__).resolve().parent


class Model:
    """The model of an exported folder, with its calibration and thresholds.

    Parameters
    ----------
    folder : Path
    device : str
    trust_remote_code : bool
        Whether to run the modelling file of the folder, if it has one.
    """

    def __init__(self, folder: Path, device: str = "cpu", trust_remote_code: bool = False) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        load = AutoModelForSequenceClassification.from_pretrained
        self.network: Any = load(folder, dtype="auto", trust_remote_code=trust_remote_code).eval().to(device)
        self.names = [self.network.config.id2label[i] for i in range(self.network.config.num_labels)]
        self.multi_label = self.network.config.problem_type == "multi_label_classification"
        self.decisions = json.loads((folder / "decisions.json").read_text(encoding="utf-8"))
        # What an empty text becomes, if the tokenizer would leave no token of it.
        special = (self.tokenizer.bos_token, self.tokenizer.eos_token, self.tokenizer.pad_token)
        self.empty = "" if self.tokenizer("")["input_ids"] else next(token for token in special if token)

    @torch.no_grad()
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
                return_tensors="pt",
            ).to(self.network.device)
            found[rows] = self.network(**encoded).logits.double().cpu().numpy()
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
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
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
