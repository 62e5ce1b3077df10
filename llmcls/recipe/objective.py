"""What thresholds are tuned for: the text of ``train.threshold_metric``."""

from __future__ import annotations

import re


def parse_objective(text: str) -> tuple[str, float]:
    """Parse a threshold metric.

    Parameters
    ----------
    text : str
        ``f1``, ``f0.5`` or any ``f<beta>``, or ``recall@precision=<p>``.

    Returns
    -------
    ("f", beta) or ("recall", p)

    Raises
    ------
    ValueError
        With the forms that are allowed.

    Examples
    --------
    >>> parse_objective("f0.5")
    ('f', 0.5)
    >>> parse_objective("recall@precision=0.9")
    ('recall', 0.9)
    """
    number = re.fullmatch(r"f(\d+(?:\.\d+)?)", text)
    if number and float(number[1]) > 0:
        return "f", float(number[1])
    precision = re.fullmatch(r"recall@precision=(0?\.\d+|1(?:\.0+)?)", text)
    if precision and float(precision[1]) > 0:
        return "recall", float(precision[1])
    raise ValueError("it must be f1, f0.5, f2 or any f<beta>, or recall@precision=0.9 (or another precision)")
