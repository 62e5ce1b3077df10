"""The picture of a learning curve."""

from __future__ import annotations

from pathlib import Path

from llmcls.evaluation.learning_curve import Estimate, Forecast
from llmcls.results.pictures import COLOURS, INK, new_figure, save_pictures, style


def write_pictures(
    path: Path, title: str, sizes: list[int], lines: dict[str, list[Estimate]], forecast: Forecast | None
) -> None:
    """Write ``<path>.png`` and ``<path>.svg``.

    Parameters
    ----------
    path : Path
        Without a suffix.
    title : str
    sizes : list of int
        Numbers of rows.
    lines : dict of list of Estimate
        The points of each line, by its name. The forecast is for the first one.
    forecast : Forecast, optional
        Drawn as a dashed line.
    """
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure = new_figure((7, 4.2))
    axes = figure.subplots()
    for colour, (name, points) in zip(COLOURS, lines.items(), strict=False):
        values = [point.value for point in points]
        axes.plot(sizes, values, color=colour, marker="o", linewidth=2, label=name)
        axes.fill_between(
            sizes, [p.low for p in points], [p.high for p in points], color=colour, alpha=0.2, linewidth=0
        )
        if forecast is not None and name == next(iter(lines)):
            gain, last = forecast.gain, values[-1]
            spread = [[gain.value - gain.low], [gain.high - gain.value]]
            axes.plot([sizes[-1], forecast.rows], [last, last + gain.value], "--", color=colour, label="predicted")
            axes.errorbar(
                [forecast.rows], [last + gain.value], yerr=spread, color=colour, marker="o", mfc="none", capsize=4
            )
    ticks = [*sizes, forecast.rows] if forecast is not None else sizes
    axes.set_xscale("log")
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    style(axes, title, "labelled rows")
    axes.legend(frameon=False, labelcolor=INK, loc="lower right")
    save_pictures(path, figure)
