from __future__ import annotations

import io
import itertools
import logging
import re
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from llmcls.training import progress_bar
from llmcls.training.progress_bar import Course, StepDisplay, memory_in_words
from tests.helpers import train

CPU = torch.device("cpu")
VALUES = {
    "loss": 0.51234, "samples_per_second": 123.4, "tokens_per_second": 45678.0, "epoch": 0.1, "learning_rate": 1e-3,
}  # fmt: skip


def course(**changes) -> Course:
    values = {"total_steps": 1460, "done": 0, "evaluation_every": 365, "evaluation_rows": 0, "metric": "f1_micro"}
    return Course(**(values | changes), device=CPU)


def terminal(width: int, encoding: str = "utf-8") -> Console:
    """A terminal of some width that remembers what was written."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    return Console(file=file, force_terminal=True, width=width, height=40, _environ={})


def written(console: Console) -> str:
    """All that came to a terminal."""
    console.file.flush()
    return console.file.buffer.getvalue().decode(console.encoding)  # type: ignore[attr-defined]


def lines_of(text: str) -> list[str]:
    """The lines of a terminal without colours and movements of the cursor."""
    return [line.rstrip() for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)) if line.strip()]


def shown(display: StepDisplay, width: int) -> list[str]:
    """The two lines of a display."""
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None, _environ={})
    console.print(display)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress_bar, "memory_in_words", lambda device: "5.1 of 80 GB")
    return now


@pytest.mark.parametrize(
    ("width", "first", "second"),
    [
        (
            60,
            "step 120/1460 ━━─────────────────── 1:02 elapsed  11:32 left",
            "loss 0.5123  123.4 samples/s  best 0.8123 at 100  5.1/80 GB",
        ),
        (
            120,
            "step 120/1460 " + "━" * 7 + "─" * 74 + " 1:02 elapsed  11:32 left",
            "loss 0.5123  123.4 samples/s  45678 tokens/s  best micro-F1 0.8123 at 100  5.1 of 80 GB",
        ),
        (30, "step 120/1460  11:32 left", "loss 0.5123  123.4 samples/s"),
    ],
)
def test_the_bar_fits_the_terminal_and_names_its_times(clock: list[float], width: int, first: str, second: str) -> None:
    display = StepDisplay(course(), shown=False)
    clock[0] += 62
    display.report(120, VALUES, 62.0)
    display.best(0.8123, 100)
    assert shown(display, width) == [first, second]
    with display.evaluating():
        assert shown(display, width)[1].startswith("evaluating  loss 0.5123")
        assert len(shown(display, width)[1]) <= width


def test_times_go_on_between_reports_and_evaluations_do_not_make_them_jump(clock: list[float]) -> None:
    guessed = course(total_steps=40, evaluation_every=10, evaluation_rows=1481)
    display = StepDisplay(guessed, shown=False)
    left = []
    for step in range(1, 41):
        clock[0] += 1
        if step % 5 == 0:
            display.report(step, VALUES, float(step))
        left.append(seconds(shown(display, 80)[0]))
        if step % 10 == 0:
            with display.evaluating():
                clock[0] += 4
                assert "evaluating" in shown(display, 120)[1]
                left.append(seconds(shown(display, 80)[0]))
    known = left[4:]
    drops = [a - b for a, b in itertools.pairwise(known)]
    assert set(drops) == {1, 4}, "a step takes one second from what is left, an evaluation four"
    assert left[-1] == 0


def seconds(line: str) -> int:
    """What a line says is left."""
    found = re.search(r"(?:(\d+):)?(\d+):(\d+) left", line)
    if found is None:
        return 10**6
    hours, minutes, rest = (int(part or 0) for part in found.groups())
    return 3600 * hours + 60 * minutes + rest


def test_the_first_evaluation_is_guessed_from_the_speed(clock: list[float]) -> None:
    display = StepDisplay(course(total_steps=100, evaluation_every=50, evaluation_rows=3702), shown=False)
    display.report(10, VALUES, 10.0)
    assert seconds(shown(display, 80)[0]) == 90 + 2 * 10, "3,702 rows at three times 123.4 a second, twice"


def test_numbers_are_renewed_between_two_reports(clock: list[float]) -> None:
    console = terminal(80)
    display = StepDisplay(course(), shown=True, console=console)
    asked = []

    def so_far() -> dict[str, float]:
        asked.append(clock[0])
        return VALUES | {"loss": 0.25}

    try:
        for step in range(1, 11):
            clock[0] += 0.5
            display.advance(step, so_far)
        assert asked == [1002.0, 1004.0]
        assert "loss 0.2500" in shown(display, 80)[1]
    finally:
        display.close()


def test_log_lines_stand_above_the_bar_and_the_log_is_given_back(capsys) -> None:
    handler, elsewhere = logging.StreamHandler(sys.stderr), logging.StreamHandler(io.StringIO())
    elsewhere.stream.close()
    root, before = logging.getLogger("llmcls"), sys.stderr
    # What another library left there is not touched.
    for one in (handler, elsewhere):
        root.addHandler(one)
    elsewhere.setLevel(logging.CRITICAL)
    console = terminal(60)
    try:
        display = StepDisplay(course(), shown=True, console=console)
        root.warning("a line that is much longer than the sixty columns of this terminal, so it is wrapped")
        display.close()
        assert handler.stream is before
    finally:
        for one in (handler, elsewhere):
            root.removeHandler(one)
    lines = lines_of(written(console))
    assert "a line that is much longer than the sixty columns of this" in lines
    assert "terminal, so it is wrapped" in lines
    assert capsys.readouterr().err == ""


def test_a_terminal_without_unicode_gets_plain_characters() -> None:
    console = terminal(70, "ascii")
    display = StepDisplay(course(), shown=True, console=console)
    display.close()
    assert "-" * 34 in written(console)


def test_the_bar_is_there_before_the_first_line_is_printed_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    console = terminal(60)
    # The thread that draws it again never comes to it.
    monkeypatch.setattr("rich.live._RefreshThread.run", lambda thread: None)
    display = StepDisplay(course(), shown=True, console=console)
    drawn = len(written(console))
    assert lines_of(written(console))[0].startswith("step 0/1460 ")
    console.print("a line")
    # It goes to the start of the bar and removes it first.
    assert written(console)[drawn:].startswith("\r\x1b[2K")
    display.close()


@pytest.mark.parametrize("width", [60, 120])
def test_a_training_at_this_width_shows_whole_lines(
    write_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    console = terminal(width)
    monkeypatch.setattr(progress_bar, "Console", lambda **_: console)
    monkeypatch.setattr(progress_bar, "SECONDS_BETWEEN_NUMBERS", 0.0)
    train(write_recipe(train__max_steps=4, train__eval_steps=2, train__train_metrics_rows=0, data__test_csv=None))
    lines = lines_of(written(console))
    assert max(map(len, lines)) <= width
    assert any(re.match(r"step 4/4 ━+ 0:\d\d elapsed  0:\d\d left$", line) for line in lines)
    assert any(re.match(r"(evaluating  )?loss \d\.\d{4}  [\d.]+ samples/s", line) for line in lines)
    assert any("evaluating" in line for line in lines)
    assert any(f"best {'' if width == 60 else 'micro-F1 '}0." in line for line in lines)
    assert any(re.search(r"\d\.\d GB$", line) for line in lines)


def test_without_a_terminal_progress_is_log_lines(log_lines: list[str]) -> None:
    display = StepDisplay(course(total_steps=10, evaluation_every=10), shown=True)
    display.advance(1, lambda: {})
    display.report(1, VALUES, 6.8)
    display.close()
    assert log_lines == ["step 1/10  epoch 0.10  loss 0.5123  123.4 samples/s  45678 tokens/s  lr 1.00e-03  1:01 left"]


def test_the_memory_of_this_process_is_in_gigabytes() -> None:
    assert 0.05 < float(memory_in_words(CPU).removesuffix(" GB")) < 100
