"""The style of drawn figures, as PNG and SVG, readable on a light and on a dark page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmcls.common.files import replacing

# On a transparent background, these have enough contrast to white and to black.
COLOURS = ("#3b82f6", "#f97316", "#10a37f")
INK = "#808590"


def new_figure(inches: tuple[float, float]) -> Any:
    """An empty `matplotlib.figure.Figure` of a width and height."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # pyplot would choose a GUI backend and keep every figure in memory.
    figure = Figure(figsize=inches, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def style(axes: Any, title: str, x_label: str) -> None:
    """Give axes their title, a label, and colours that can be read on any page."""
    axes.set_title(title, color=INK)
    axes.set_xlabel(x_label, color=INK)
    axes.tick_params(colors=INK, which="both")
    axes.grid(alpha=0.3, color=INK)
    for spine in axes.spines.values():
        spine.set_color(INK)


def save_pictures(path: Path, figure: Any) -> None:
    """Write ``<path>.png`` and ``<path>.svg``; the same figure gives the same bytes."""
    from matplotlib import rc_context

    # The same ids in every drawing of the same figure.
    with rc_context({"svg.hashsalt": "llmcls"}):
        for suffix in (".png", ".svg"):
            with replacing(path.with_name(path.name + suffix)) as temporary:
                metadata = {"Date": None} if suffix == ".svg" else None
                figure.savefig(temporary, format=suffix[1:], transparent=True, dpi=160, metadata=metadata)
