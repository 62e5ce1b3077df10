"""The picture of a learning curve, as PNG and SVG, readable on a light and on a dark page."""

from __future__ import annotations

from pathlib import Path

from llmcls.common.files import replacing
from llmcls.evaluation.learning_curve import Estimate, Forecast

# On a transparent background, these have enough contrast to white and to black.
COLOURS = ("#3b82f6", "#f97316", "#10a37f")
INK = "#808590"


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
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    # pyplot would choose a GUI backend and keep every figure in memory.
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
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
    axes.set_xlabel("labelled rows", color=INK)
    axes.set_title(title, color=INK)
    axes.tick_params(colors=INK, which="both")
    axes.grid(alpha=0.3, color=INK)
    for spine in axes.spines.values():
        spine.set_color(INK)
    axes.legend(frameon=False, labelcolor=INK, loc="lower right")
    # The same ids in every drawing of the same curve.
    with rc_context({"svg.hashsalt": "llmcls"}):
        for suffix in (".png", ".svg"):
            with replacing(path.with_name(path.name + suffix)) as temporary:
                metadata = {"Date": None} if suffix == ".svg" else None
                figure.savefig(temporary, format=suffix[1:], transparent=True, dpi=160, metadata=metadata)
