"""A trained run in Python: texts in, labels or probabilities out, with the conventions of scikit-learn.

from llmcls import Classifier
classifier = Classifier.load("outputs/tiny-llama/products/run_0")
classifier.predict(["A novel about a garden."])
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin

from llmcls.common.user_error import UserError
from llmcls.evaluation.outcome import CHUNK_ROWS
from llmcls.results.finished_runs import FinishedRun, open_run
from llmcls.results.run_folder import RunFolder
from llmcls.serving.loaded import LoadedRun, load_runs


class Classifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A trained run as a fitted scikit-learn estimator.

    Parameters
    ----------
    run : str or Path
        A run folder, ``outputs/.../run_0``.
    base_model : str, optional
        Where the pretrained model is now, if it moved since training.
    chunk_rows : int
        Texts that are scored together; also how many a generator is read ahead.

    Attributes
    ----------
    classes_ : ndarray of str [labels]
        The names of the labels, in the order of the probabilities.

    Notes
    -----
    The model is loaded at the first prediction. `fit` changes nothing: the run is trained. So ``cross_val_score`` and a
    ``Pipeline`` evaluate the run as it is.
    """

    def __init__(self, run: str | Path, base_model: str | None = None, chunk_rows: int = CHUNK_ROWS) -> None:
        self.run, self.base_model, self.chunk_rows = run, base_model, chunk_rows

    @classmethod
    def load(cls, run: str | Path, base_model: str | None = None) -> Classifier:
        """Open a run and load its model.

        Raises
        ------
        UserError
            If there is no finished run in the folder, or its pretrained model cannot be loaded.
        """
        classifier = cls(run, base_model)
        _ = classifier._loaded
        return classifier

    @property
    def classes_(self) -> np.ndarray:
        """The names of the labels."""
        return np.array(self._opened.labels.names)

    def fit(self, X: Iterable[str], y: Any = None) -> Classifier:
        """Return the classifier itself, which is trained already."""
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn may expect: a column of texts, no fitting, and no check of numbers."""
        tags = super().__sklearn_tags__()
        tags.requires_fit, tags.no_validation = False, True
        tags.target_tags.required = False
        tags.input_tags.one_d_array = tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        return tags

    def predict(self, X: Iterable[str]) -> np.ndarray:
        """The labels of texts.

        Parameters
        ----------
        X : iterable of str
            A list, an array, a pandas column or a generator.

        Returns
        -------
        ndarray
            Single-label and binary: the name of the class, str [texts]. Multi-label: 0/1 marks, int64 [texts, labels].
        """
        return np.concatenate([self._decided(p) for p in self._probabilities(X)])

    def predict_proba(self, X: Iterable[str]) -> np.ndarray:
        """The calibrated probability of every label, float32 [texts, labels]."""
        return np.concatenate(list(self._probabilities(X)))

    def predict_labels(self, X: Iterable[str]) -> list[list[str]]:
        """The names of the labels of each text."""
        return [found for found, _ in self.stream(X)]

    def stream(self, X: Iterable[str]) -> Iterator[tuple[list[str], dict[str, float]]]:
        """Labels, and the probability of every label, of one text after the other; memory stays bounded."""
        names = self._opened.labels.names
        for probabilities in self._probabilities(X):
            marks = self._loaded.decisions(probabilities)
            for row, on in zip(probabilities, marks, strict=True):
                chosen = [name for name, marked in zip(names, on, strict=True) if marked]
                yield chosen, dict(zip(names, row.tolist(), strict=True))

    @cached_property
    def _opened(self) -> FinishedRun:
        return open_run(RunFolder(Path(self.run)), self.base_model)

    @cached_property
    def _loaded(self) -> LoadedRun:
        return load_runs([self._opened])[0]

    def _probabilities(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """Probabilities of `chunk_rows` texts at a time, float32 [rows, labels]."""
        if isinstance(texts, str):
            raise UserError("predict takes a list of texts, not one text; use predict([text])")
        # Iterating over a table gives the names of its columns.
        if getattr(texts, "ndim", 1) != 1:
            raise UserError("predict takes one column of texts, not a table; join its columns with data.text_separator")
        remaining, first = iter(texts), 0
        while chunk := list(itertools.islice(remaining, self.chunk_rows)):
            yield self._loaded.probabilities(self._loaded.tokens(chunk, first))
            first += len(chunk)
        if not first:
            yield np.zeros((0, len(self._opened.labels.names)), dtype=np.float32)

    def _decided(self, probabilities: np.ndarray) -> np.ndarray:
        marks = self._loaded.decisions(probabilities)
        if self._opened.labels.multi_label:
            return marks.astype(np.int64)
        return self.classes_[marks.argmax(axis=1)]

    def __getstate__(self) -> dict[str, Any]:
        # The loaded model stays behind: a copy in another process loads its own.
        return {name: value for name, value in super().__getstate__().items() if name not in ("_opened", "_loaded")}
