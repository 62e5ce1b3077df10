from __future__ import annotations

from pathlib import Path

from llmcls.results.pictures import new_figure, save_pictures, style


def test_the_same_figure_is_the_same_file_and_has_its_words(tmp_path: Path) -> None:
    for name in ("one", "two"):
        figure = new_figure((3, 2))
        axes = figure.subplots()
        axes.plot([1, 2], [3, 4])
        style(axes, "a title", "a label")
        save_pictures(tmp_path / name, figure)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    drawn = (tmp_path / "one.svg").read_text(encoding="utf-8")
    assert "<!-- a title -->" in drawn
    assert "<!-- a label -->" in drawn
