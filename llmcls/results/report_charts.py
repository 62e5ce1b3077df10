"""The pictures of a report as inline SVG, which follows the colours of the page and needs no other file.

Colours are classes that the style sheet of the page defines: c0, c1, ... for series, so that a picture is readable on a
light page, on a dark one and on paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from markupsafe import Markup

Point = tuple[float, float]

# Near the widths at which they are shown, so that their text has the size of other small text.
SIZE, SMALL = (360, 215), (230, 150)
LEFT, RIGHT, TOP, BOTTOM = 42, 12, 10, 34
# Points of a line. More cannot be told apart, and would make the page heavy.
MOST_POINTS = 400
# Series that have a colour of their own.
COLOURS = 6


@dataclass(frozen=True)
class Line:
    """A series of a chart.

    Attributes
    ----------
    name : str
        In the legend; lines with the same name are one entry.
    points : list of (float, float)
    colour : int
        Number of the colour.
    dashed : bool
    marked : bool
        Whether every point is a dot.
    joined : bool
        Whether the points are joined.
    """

    name: str
    points: list[Point]
    colour: int = 0
    dashed: bool = False
    marked: bool = False
    joined: bool = True


@dataclass(frozen=True)
class Axes:
    """The frame of a chart.

    Attributes
    ----------
    title : str
        What the chart shows, also for those who cannot see it.
    x, y : str
        Names of the axes.
    whole : bool
        Whether both axes go from 0 to 1.
    diagonal : bool
        Whether the diagonal is drawn, where the axes are equal.
    small : bool
        Whether it is one of many beside each other.
    """

    title: str
    x: str
    y: str
    whole: bool = False
    diagonal: bool = False
    small: bool = False


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most about ``most`` points of a line: of each stretch the lowest and the highest, so that no peak is lost.

    Examples
    --------
    >>> thinned([(0, 1), (1, 9), (2, 0), (3, 1)], most=2)
    [(1, 9), (2, 0)]
    """
    if len(points) <= most:
        return list(points)
    kept = []
    for stretch in np.array_split(np.arange(len(points)), most // 2):
        found = [points[i] for i in stretch]
        kept += sorted({min(found, key=lambda p: p[1]), max(found, key=lambda p: p[1])})
    return kept


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between two limits.

    Examples
    --------
    >>> ticks(0.0, 1.0), ticks(3, 997)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0])
    """
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
    step = next(s for s in (power, 2 * power, 2.5 * power, 5 * power, 10 * power) if s >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def line_chart(lines: list[Line], axes: Axes) -> Markup:
    """Lines over two axes, with their legend.

    Parameters
    ----------
    lines : list of Line
        Lines without points are left out; without any, nothing is drawn.
    axes : Axes

    Returns
    -------
    Markup
        A figure.
    """
    drawn = [line for line in lines if line.points]
    if not drawn:
        return Markup("")
    width, height = SMALL if axes.small else SIZE
    xs, ys = ([p[i] for line in drawn for p in line.points] for i in (0, 1))
    x_ticks, y_ticks = (
        (ticks(0, 1, 2 if axes.small else 5),) * 2 if axes.whole else (ticks(min(xs), max(xs)), ticks(min(ys), max(ys)))
    )
    # A time line ends where the run ended, not at the next round number.
    x_low, x_high = (0.0, 1.0) if axes.whole else (x_ticks[0], max(max(xs), x_ticks[0] + 1e-9))
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def x(value: float) -> float:
        return LEFT + (value - x_low) / (x_high - x_low) * (width - LEFT - RIGHT)

    def y(value: float) -> float:
        return height - BOTTOM - (value - y_low) / (y_high - y_low) * (height - TOP - BOTTOM)

    parts = []
    for value in y_ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 3.5:.1f}" text-anchor="end">{_short(value)}</text>')
    for value in x_ticks:
        if value <= x_high:
            parts.append(f'<text x="{x(value):.1f}" y="{height - 20}" text-anchor="middle">{_short(value)}</text>')
    if axes.diagonal:
        parts.append(f'<line class="ideal" x1="{x(0):.1f}" y1="{y(0):.1f}" x2="{x(1):.1f}" y2="{y(1):.1f}"/>')
    parts.append(
        f'<text x="{(LEFT + width - RIGHT) / 2}" y="{height - 4}" text-anchor="middle">{escape(axes.x)}</text>'
    )
    for line in drawn:
        style = f"c{line.colour % COLOURS}{' dash' if line.dashed else ''}"
        points = [(x(a), y(b)) for a, b in thinned(line.points)]
        if line.joined and len(points) > 1:
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
            parts.append(f'<polyline class="line {style}" points="{path}"/>')
        if line.marked or len(points) == 1:
            parts += [
                f'<circle class="dot {style}" cx="{a:.1f}" cy="{b:.1f}" r="{2.6 if line.joined else 5}"/>'
                for a, b in points
            ]
    return _figure(axes, f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"', parts, drawn)


def _figure(axes: Axes, size: str, parts: list[str], lines: list[Line]) -> Markup:
    """A picture with its title, the name of its vertical axis, and its legend."""
    entries = {line.name: line for line in lines}
    legend = "".join(f"<li>{_sample(line)}{escape(name)}</li>" for name, line in entries.items())
    legend = f'<ul class="legend">{legend}</ul>' if len(entries) > 1 else ""
    caption = f'<figcaption><span class="chart-title">{escape(axes.title)}</span>'
    caption += f' <span class="axis">{escape(axes.y)}</span>' if axes.y != axes.title and not axes.small else ""
    words = escape(_spoken(axes, lines))
    picture = f'<svg class="chart" {size} role="img" aria-label="{words}">{"".join(parts)}</svg>'
    return Markup(f"<figure>{caption}{legend}</figcaption>{picture}</figure>")


def _sample(line: Line) -> str:
    """What a line looks like, for the legend."""
    style = f"c{line.colour % COLOURS}{' dash' if line.dashed else ''}"
    drawn = f'<line class="line {style}" x1="0" x2="22" y1="5" y2="5"/>'
    if not line.joined:
        drawn = f'<circle class="dot {style}" cx="11" cy="5" r="5"/>'
    return f'<svg viewBox="0 0 22 10" width="22" height="10" aria-hidden="true">{drawn}</svg>'


def _spoken(axes: Axes, lines: list[Line]) -> str:
    """A chart in words: where each of its lines begins and ends."""
    each = [f"{one.name} from {_short(one.points[0][1])} to {_short(one.points[-1][1])}" for one in lines[:12]]
    return f"{axes.title}, {axes.y} over {axes.x}: {'; '.join(each)}"


def _short(value: float) -> str:
    """A number with few digits.

    Examples
    --------
    >>> _short(0.25), _short(1500.0), _short(2_000_000.0), _short(0.0002)
    ('0.25', '1,500', '2M', '2e-4')
    """
    if value != 0 and abs(value) < 0.001:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    if abs(value) >= 1_000_000:
        return f"{value / 1_000_000:g}M"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def heat_map(matrix: np.ndarray, names: list[str]) -> Markup:
    """Rows of each class by the class that was predicted.

    Parameters
    ----------
    matrix : int [labels, labels]
        From `llmcls.evaluation.diagrams.confusion_matrix`.
    names : list of str

    Returns
    -------
    Markup
        An SVG. The colour of a cell is its share of the rows of the class; right ones have another colour than
        wrong ones.
    """
    count = len(names)
    cell = 34 if count <= 12 else 20 if count <= 30 else 11
    size = 12 if count <= 30 else 9
    longest = min(24, max(len(name) for name in names))
    edge = int(longest * size * 0.58) + 12
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = count * cell
    parts = [f'<rect class="frame" x="{edge}" y="{edge}" width="{side}" height="{side}"/>']
    for i, name in enumerate(names):
        middle = edge + (i + 0.5) * cell
        text = escape(name if len(name) <= 24 else f"{name[:23]}…")
        parts.append(f'<text x="{edge - 5}" y="{middle + size / 3:.1f}" text-anchor="end">{text}</text>')
        place = f"translate({middle + size / 3:.1f},{edge - 5}) rotate(-90)"
        parts.append(f'<text transform="{place}">{text}</text>')
    for row, column in np.argwhere(matrix):
        rows, share = int(matrix[row, column]), float(shares[row, column])
        where = f'x="{edge + column * cell}" y="{edge + row * cell}" width="{cell}" height="{cell}"'
        right = row == column
        # A single mistake among many rows must still be seen.
        depth = 0.15 + 0.85 * share if right else 0.3 + 0.7 * share
        said = f"{escape(names[row])}, predicted {escape(names[column])}: {rows} rows, {share:.0%}"
        parts.append(
            f'<rect class="cell {"right" if right else "wrong"}" {where} fill-opacity="{depth:.2f}">'
            f"<title>{said}</title></rect>"
        )
        if count <= 12:
            place = f'x="{edge + (column + 0.5) * cell}" y="{edge + (row + 0.5) * cell + 4}" text-anchor="middle"'
            parts.append(f'<text class="count" {place}>{rows}</text>')
    total, correct = int(matrix.sum()), int(np.trace(matrix))
    words = f"Confusion matrix of {count} classes: {correct} of {total} rows are on the diagonal, which is right."
    width = edge + side + 4
    box = f'viewBox="0 0 {width} {width}" width="{width}" height="{width}" style="font-size:{size}px"'
    return Markup(f'<svg class="heat" {box} role="img" aria-label="{words}">{"".join(parts)}</svg>')
