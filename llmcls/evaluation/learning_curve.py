"""Learning curves: how a metric grows with the number of labelled rows, and what more rows would bring."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmcls.evaluation.bootstrap import distinct_rows, resampled

RESAMPLES = 500
# The last sizes that a forecast of the next doubling is made from. Smaller ones often follow another law.
FITTED_SIZES = 4
# Candidates for the error that no number of rows removes, as shares of the smallest error seen.
FLOORS = np.linspace(0.0, 0.9, 19)
# Deviation of the logarithm of a run's error with another sample and seed, and how many degrees of freedom this guess
# weighs against the deviation of the seeds that there are. It is 0.03 for TF-IDF and 0.06 for a decoder on ten texts of
# each class of banking77.
SEED_DEVIATION, SEED_WEIGHT = 0.04, 4
# Deviation of the logarithm of the gain, because no law is exact. Chosen so that the intervals have the gains that are
# found, see `bench/forecasts.py`.
LAW_DEVIATION = 0.2


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, drawn: np.ndarray) -> Estimate:
        """A value, and the interval of bootstrap samples of it."""
        low, high = np.percentile(drawn, [2.5, 97.5])
        return cls(float(value), float(low), float(high))


@dataclass(frozen=True)
class Forecast:
    """What more rows would bring.

    Attributes
    ----------
    rows : int
        Twice the largest size.
    gain : Estimate
        Predicted difference of the metric between twice the largest size and the largest size.
    last_gain : Estimate
        The difference between the two largest sizes, as found.
    check : float, optional
        What the sizes before the largest one predict for it; None with two sizes.
    """

    rows: int
    gain: Estimate
    last_gain: Estimate
    check: float | None


def drawn_means(
    true: np.ndarray,
    decisions: list[list[np.ndarray]],
    metric: str,
    resamples: int = RESAMPLES,
    draw_runs: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """The metric of each size, as the mean over its runs, on all rows and on bootstrap samples.

    Parameters
    ----------
    true : bool [rows, labels]
    decisions : list of list of bool [rows, labels]
        For each size, the decisions of each run.
    metric : str
        A name of `llmcls.evaluation.bootstrap.resampled`.
    resamples : int
    draw_runs : bool
        Whether runs are resampled too.

    Returns
    -------
    values : float64 [sizes]
    drawn : float64 [resamples, sizes]
        Rows are resampled for all sizes together, and the runs of each size by themselves.
    """
    rng, rows = np.random.default_rng(0), len(true)
    true, flat, counts = distinct_rows(true, [run for runs in decisions for run in runs])
    draws, once = rng.multinomial(rows, counts / rows, size=resamples), counts[None]
    values, drawn = [], []
    for number in [len(runs) for runs in decisions]:
        runs, flat = flat[:number], flat[number:]
        values.append(np.mean([resampled(once, true, run)[metric][0] for run in runs]))
        each = np.stack([resampled(draws, true, run)[metric] for run in runs])
        if draw_runs:
            each = each[rng.integers(len(runs), size=(len(runs), resamples)), np.arange(resamples)]
        drawn.append(each.mean(axis=0))
    return np.array(values), np.stack(drawn, axis=1)


def extrapolate(sizes: np.ndarray, values: np.ndarray, size: float) -> np.ndarray:
    """The metric at another size, by a power law of the error.

    Parameters
    ----------
    sizes : [sizes]
        In ascending order, at least two.
    values : float64 [..., sizes]
        Of a metric whose best value is 1.
    size : float

    Returns
    -------
    float64 [...]

    Notes
    -----
    error(n) = c + a n^-b with b >= 0 (Hestness et al. 2017, "Deep Learning Scaling is Predictable, Empirically"), by
    least squares on log(error - c), over the last `FITTED_SIZES` sizes. Of the candidates for c, the one whose curve
    is closest to the errors; with fewer than four sizes c is 0, because three points do not determine three numbers.

    Examples
    --------
    >>> sizes = np.array([100, 200, 400])
    >>> round(float(extrapolate(sizes, 1 - 4 / np.sqrt(sizes), 1600)), 3)
    0.9
    """
    sizes, errors = sizes[-FITTED_SIZES:], np.maximum(1 - np.asarray(values)[..., -FITTED_SIZES:], 1e-6)
    x = np.log(sizes) - np.log(sizes).mean()
    best = np.full(errors.shape[:-1], np.inf)
    found = np.zeros(errors.shape[:-1])
    for share in FLOORS if len(sizes) >= 4 else FLOORS[:1]:
        floor = share * errors.min(axis=-1, keepdims=True)
        y = np.log(errors - floor)
        slope = np.minimum((y * x).sum(axis=-1) / (x * x).sum(), 0.0)
        level = y.mean(axis=-1)
        fitted = floor + np.exp(level[..., None] + slope[..., None] * x)
        distance = ((fitted - errors) ** 2).sum(axis=-1)
        predicted = 1 - floor[..., 0] - np.exp(level + slope * (np.log(size) - np.log(sizes).mean()))
        found = np.where(distance < best, predicted, found)
        best = np.minimum(distance, best)
    return found


def seed_deviation(seeds: list[list[float]]) -> float:
    """The standard deviation of the logarithm of a run's error around that of its size.

    Parameters
    ----------
    seeds : list of list of float
        For each size, a metric with each seed.

    Notes
    -----
    Pooled over the sizes, and drawn to `SEED_DEVIATION`, because a few seeds say little about it, and one says nothing.
    """
    errors = [np.log(np.maximum(1 - np.array(values), 1e-6)) for values in seeds]
    squares = sum(float(((e - e.mean()) ** 2).sum()) for e in errors)
    freedom = sum(len(e) - 1 for e in errors)
    return float(np.sqrt((squares + SEED_WEIGHT * SEED_DEVIATION**2) / (freedom + SEED_WEIGHT)))


def forecast(sizes: list[int], seeds: list[list[float]], drawn: np.ndarray) -> Forecast | None:
    """What twice as many rows would bring; None for a single size.

    Parameters
    ----------
    sizes : list of int
        In ascending order.
    seeds : list of list of float
        For each size, the metric with each seed.
    drawn : float64 [resamples, sizes]
        From `drawn_means`, without drawn runs.

    Notes
    -----
    The intervals have the noise of the test rows (``drawn``), of samples and seeds (`seed_deviation`), and what a law
    of learning curves is off (`LAW_DEVIATION`).
    """
    if len(sizes) < 2:
        return None
    at, twice = np.array(sizes, dtype=np.float64), 2 * sizes[-1]
    values, rng = np.array([np.mean(each) for each in seeds]), np.random.default_rng(0)
    of_means = seed_deviation(seeds) / np.sqrt([len(each) for each in seeds])
    drawn = 1 - (1 - drawn) * np.exp(of_means * rng.normal(size=drawn.shape))

    def gain(of: np.ndarray) -> np.ndarray:
        # From the curve to the curve: the last point alone is noisier than the fit through all.
        return extrapolate(at, of, twice) - extrapolate(at, of, sizes[-1])

    last = Estimate.of(values[-1] - values[-2], drawn[:, -1] - drawn[:, -2])
    check = float(extrapolate(at[:-1], values[:-1], sizes[-1])) if len(sizes) > 2 else None
    gains = gain(drawn) * np.exp(LAW_DEVIATION * rng.normal(size=len(drawn)))
    return Forecast(twice, Estimate.of(float(gain(values)), gains), last, check)


def advice(found: Forecast, metric: str, rows: int, worth: float) -> str:
    """A sentence or two: more labels, stop here, or too early to tell.

    Parameters
    ----------
    found : Forecast
    metric : str
        In words.
    rows : int
        The largest size.
    worth : float
        The gain from which on twice as many labels are worth their work.

    Notes
    -----
    Where that gain is inside the interval, the advice is only probable. A forecast from two sizes, whose law no third
    one confirms, gives none then.

    Examples
    --------
    >>> steady = Estimate(0.05, 0.04, 0.06)
    >>> advice(Forecast(400, steady, steady, None), "accuracy", 200, 0.01)  # doctest: +ELLIPSIS
    'More labels: twice as many (400 rows) are predicted to raise accuracy by 0.050 (95 % interval 0.040 to 0.060)...'
    """
    gain = found.gain
    if gain.low >= worth:
        begin = "More labels"
    elif gain.high < worth:
        begin = "Stop here"
    elif found.check is None:
        begin = "Too early to tell"
    else:
        begin = "Probably more labels" if gain.value >= worth else "Probably stop here"
    last = found.last_gain
    text = (
        f"{begin}: twice as many ({found.rows:,} rows) are predicted to raise {metric} by {gain.value:.3f} (95 % "
        f"interval {gain.low:.3f} to {gain.high:.3f}). The last step, to {rows:,} rows, brought {last.value:+.3f} "
        f"({last.low:+.3f} to {last.high:+.3f})."
    )
    if gain.low < worth <= gain.high:
        text += f" A gain of {worth:g} is inside the interval: more seeds or one more size would tell."
    return text
