from __future__ import annotations

from pathlib import Path

from matplotlib.image import imread

from llmcls.evaluation.learning_curve import Estimate, Forecast
from llmcls.results.curve_picture import write_pictures

LINES = {
    "fine-tuned": [Estimate(0.6, 0.5, 0.7), Estimate(0.7, 0.65, 0.75)],
    "TF-IDF": [Estimate(0.5, 0.4, 0.6), Estimate(0.6, 0.55, 0.65)],
}


def test_both_formats_have_the_lines_and_no_background(tmp_path: Path) -> None:
    forecast = Forecast(200, Estimate(0.05, 0.03, 0.08), Estimate(0.1, 0.0, 0.2), None)
    write_pictures(tmp_path / "curve", "accuracy", [50, 100], LINES, forecast)
    pixels = imread(tmp_path / "curve.png")
    assert pixels.shape[2] == 4
    assert pixels[0, 0, 3] == 0
    assert (pixels[..., 3] == 1).any()
    drawn = (tmp_path / "curve.svg").read_text(encoding="utf-8")
    for text in ("fine-tuned", "TF-IDF", "predicted", "accuracy", "labelled rows", "200"):
        assert f"<!-- {text} -->" in drawn
    write_pictures(tmp_path / "again", "accuracy", [50, 100], LINES, forecast)
    assert (tmp_path / "again.svg").read_text(encoding="utf-8") == drawn


def test_a_single_size_has_no_forecast(tmp_path: Path) -> None:
    write_pictures(tmp_path / "curve", "accuracy", [50], {n: p[:1] for n, p in LINES.items()}, None)
    assert "<!-- predicted -->" not in (tmp_path / "curve.svg").read_text(encoding="utf-8")
