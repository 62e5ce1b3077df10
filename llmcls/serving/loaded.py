"""Trained runs with their models in memory, ready to score texts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import datasets
import numpy as np
from accelerate import Accelerator

from llmcls.common.user_error import UserError
from llmcls.data.encoding import encode
from llmcls.data.splits import Split
from llmcls.engine.accelerator import autocast_dtype, open_accelerator
from llmcls.evaluation.calibration import Calibration, calibrated, load_calibration
from llmcls.evaluation.scoring import Scorer, make_scorer, score_split
from llmcls.evaluation.thresholds import Thresholds, apply_thresholds, load_thresholds
from llmcls.model.build import load_trained_classifier
from llmcls.model.classifier import Classifier
from llmcls.model.pretrained import AUTOCAST, load_tokenizer
from llmcls.model.shared_base import SavedAdapter, load_sharing_classifiers, shareable_base
from llmcls.results.finished_runs import FinishedRun


class LoadedRun:
    """A run whose model is in memory.

    Parameters
    ----------
    run : FinishedRun
    classifier : Classifier
    accelerator : Accelerator
    """

    def __init__(self, run: FinishedRun, classifier: Classifier, accelerator: Accelerator) -> None:
        self.run, self.labels, self.tokenizer = run, run.labels, load_tokenizer(run.recipe.model)
        model = accelerator.prepare_model(classifier.eval(), evaluation_mode=True)
        self.scorer: Scorer = make_scorer(accelerator, model, run.labels, self.tokenizer.pad_token_id, run.recipe)
        self.thresholds: Thresholds = load_thresholds(run.folder.thresholds, run.labels.names)
        self.calibration: Calibration = load_calibration(run.folder.calibration, len(run.labels.names))
        # Scoring reads no ids; `Split` has them for the files of predictions.
        self._no_ids = datasets.Dataset.from_dict({"id": []})

    def tokens(self, texts: Sequence[Any], first: int = 0) -> list[np.ndarray]:
        """Token ids of texts, the first of which is number ``first``: int32 [tokens] each. One thread at a time.

        Raises
        ------
        UserError
            If one of them is not text.
        """
        for i, text in enumerate(texts, first):
            if not isinstance(text, str):
                raise UserError(f"text {i} is {type(text).__name__}, not a str; convert it, or leave it out")
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                place = error.start
                raise UserError(f"text {i}: character {place} is half of a pair; decode the text correctly") from None
        stripped = [text.strip() for text in texts]
        rows = encode(stripped, self.tokenizer, self.run.recipe.data, self.labels.names)
        return [np.array(row, dtype=np.int32) for row in rows]

    def probabilities(self, tokens: list[np.ndarray]) -> np.ndarray:
        """Calibrated probabilities of tokenized texts, float32 [texts, labels]."""
        data = self.run.recipe.data
        lengths = np.array([len(row) for row in tokens], dtype=np.int32)
        window = data.max_length if data.truncation == "windows" else None
        split = Split("input", "texts", tokens, lengths, None, self._no_ids, window)
        return calibrated(score_split(self.scorer, split), self.calibration, self.labels)

    def warm_up(self) -> None:
        """Have kernels compiled, for which the first texts would wait.

        A size of 1 gets kernels of its own. Afterwards nothing compiles any more, which no other thread should see:
        torch refuses to call what is compiled while it traces something else.
        """
        for lengths in ([1], [2], [2, 3]):
            self.probabilities([np.zeros(length, dtype=np.int32) for length in lengths])

    def decisions(self, probabilities: np.ndarray) -> np.ndarray:
        """The labels that each text gets, bool [texts, labels]."""
        return apply_thresholds(probabilities, self.thresholds, self.labels)


def load_runs(runs: Sequence[FinishedRun]) -> list[LoadedRun]:
    """Load the models of runs. Those with LoRA over the same base share it in memory.

    Parameters
    ----------
    runs : sequence of FinishedRun

    Returns
    -------
    list of LoadedRun
        In the same order. Not to be used by two threads at the same time.

    Raises
    ------
    UserError
        If a pretrained model cannot be loaded, or the runs need different precisions, of which a process has one.
    """
    needed = [run.mixed_precision or AUTOCAST[run.recipe.model.torch_dtype] or "no" for run in runs]
    for run, precision in zip(runs, needed, strict=True):
        if precision != needed[0]:
            raise UserError(
                f"{run.folder.path} computes in {precision}, but {runs[0].folder.path} in {needed[0]}; "
                "one process has one precision: start one for each"
            )
    accelerator = open_accelerator(runs[0].recipe, training=False, mixed_precision=runs[0].mixed_precision)
    placement = (accelerator.device, autocast_dtype(accelerator))
    groups: dict[Hashable, list[int]] = {}
    for i, run in enumerate(runs):
        # A run that cannot share its base is a group by itself.
        groups.setdefault(shareable_base(run.recipe) or i, []).append(i)
    classifiers: dict[int, Classifier] = {}
    for members in groups.values():
        if len(members) == 1:
            run = runs[members[0]]
            found = [load_trained_classifier(run.recipe, run.labels, run.folder.model, *placement)]
        else:
            adapters = [SavedAdapter(runs[i].recipe, runs[i].labels, runs[i].folder.model) for i in members]
            found = load_sharing_classifiers(adapters, *placement)
        classifiers |= dict(zip(members, found, strict=True))
    return [LoadedRun(run, classifiers[i], accelerator) for i, run in enumerate(runs)]
