from __future__ import annotations

import re

import numpy as np

from llmcls.results.report_charts import Axes, Line, heat_map, line_chart, thinned, ticks

AXES = Axes("Loss", "optimizer step", "nats")


def test_a_long_line_keeps_its_peaks() -> None:
    points = [(float(i), 0.0) for i in range(10_000)]
    points[7_777] = (7_777.0, 9.0)
    kept = thinned(points, 400)
    assert len(kept) <= 400
    assert (7_777.0, 9.0) in kept
    assert kept == sorted(kept)
    assert thinned(points[:400], 400) == points[:400]


def test_all_points_are_inside_the_picture() -> None:
    chart = line_chart([Line("a", [(3, -2.0), (50, 1e6), (997, 17.5)]), Line("b", [(1, 1.0)], 1)], AXES)
    width, height = map(int, re.search(r'viewBox="0 0 (\d+) (\d+)" width="\d+" height="\d+" role', chart).groups())
    for pair in re.search(r'points="([^"]*)"', chart)[1].split():
        x, y = map(float, pair.split(","))
        assert 0 <= x <= width
        assert 0 <= y <= height
    assert "circle" in chart, "a single point is a dot"


def test_a_chart_is_spoken_and_has_a_legend_of_names() -> None:
    chart = line_chart(
        [Line("train <i>", [(0, 0.9), (9, 0.1)]), Line("train <i>", [(0, 0.8)]), Line("x", [(0, 1)])], AXES
    )
    assert 'aria-label="Loss, nats over optimizer step: train &lt;i&gt; from 0.9 to 0.1; ' in chart
    assert chart.count("<li>") == 2
    assert "<i>" not in chart


def test_a_constant_line_and_nothing_at_all_are_no_problem() -> None:
    assert "polyline" in line_chart([Line("a", [(0, 0.0), (1, 0.0)])], AXES)
    assert line_chart([Line("a", [])], AXES) == ""


def test_ticks_are_round_and_enclose_the_values() -> None:
    for low, high in ((0.3, 0.31), (0, 12_345), (-3, 4), (5, 5)):
        found = ticks(low, high)
        assert found[0] <= low
        assert found[-1] >= high
        assert 2 <= len(found) <= 8


def test_every_pair_of_classes_that_occurs_is_a_cell_with_its_rows() -> None:
    matrix = np.array([[8, 2, 0], [0, 5, 0], [1, 0, 0]])
    picture = heat_map(matrix, ["a<b", "b", "c"])
    assert picture.count('class="cell right"') == 2
    assert picture.count('class="cell wrong"') == 2
    assert "<title>a&lt;b, predicted b: 2 rows, 20%</title>" in picture
    assert "13 of 16 rows are on the diagonal" in picture
