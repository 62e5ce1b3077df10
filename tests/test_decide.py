from __future__ import annotations

import pytest

from tests.helpers import refusal


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ([], "give --target-precision, --coverage, or both"),
        (["--coverage", "90"], "--coverage is 90; give a number between 0 and 1"),
        (["--target-precision", "1"], "--target-precision is 1; give a number between 0 and 1"),
        (["--coverage", "0.9", "--output", "p.jsonl"], "--output is --input; name another file"),
        (["--coverage", "0.9"], "p.jsonl does not exist; it is a file that llmcls predict wrote"),
    ],
)
def test_a_mistake_is_one_sentence(trained_once, capsys, arguments: list[str], sentence: str) -> None:
    given = ["--run", trained_once.runs[0], "--input", "p.jsonl", "--output", "d.jsonl", *arguments]
    assert sentence in refusal(capsys, "decide", *given)


def test_the_command_prints_what_its_promises_cost(trained_once, tmp_path, capsys) -> None:
    from llmcls.decide import main

    run = trained_once.runs[0]
    output = tmp_path / "d.csv"
    main(["--run", str(run), "--input", str(run / "predictions_test.jsonl"), "--output", str(output),
          "--coverage", "0.8"])  # fmt: skip
    out = capsys.readouterr().out
    assert "sets with a coverage of 80%" in out
    assert f"61 rows -> {output}" in out
    assert output.read_text().startswith("id,labels,set,true,probability_books")
