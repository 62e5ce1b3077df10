"""Decide a predictions file again: ``python -m llmcls.decide --run R --input p.jsonl --output d.jsonl``.

``--target-precision 0.95`` keeps a predicted label only if at least 95 % of such labels are right, and lists the others
as "unsure", for a person to look at. ``--coverage 0.9`` adds a "set" of labels that contains the true one in 90 % of
the texts. Both come from the validation predictions of the run, and are told with what they cost.
"""

from __future__ import annotations

from pathlib import Path

from llmcls.common.command import command_parser, run_command
from llmcls.common.user_error import UserError
from llmcls.results.decided import decide
from llmcls.results.prediction_formats import FORMATS, format_of
from llmcls.results.run_folder import RunFolder


def main(argv: list[str] | None = None) -> None:
    """Write the file, and print what the promises cost."""
    parser = command_parser("decide", "Decide predictions again: abstain where unsure, or give sets of labels.")
    parser.add_argument("--run", required=True, help="the run that made the predictions")
    parser.add_argument("--input", required=True, help="predictions as JSON lines")
    parser.add_argument("--output", required=True, help="the file to write")
    parser.add_argument("--format", choices=FORMATS, help="of the output; that of its extension if left out")
    parser.add_argument("--target-precision", type=float, metavar="P", help="keep labels that are right this often")
    parser.add_argument("--coverage", type=float, metavar="C", help="add sets that contain the true label this often")
    arguments = parser.parse_args(argv)
    promises = {"--target-precision": arguments.target_precision, "--coverage": arguments.coverage}
    if all(value is None for value in promises.values()):
        raise UserError("command line: give --target-precision, --coverage, or both")
    for name, value in promises.items():
        if value is not None and not 0.0 < value < 1.0:
            raise UserError(f"command line: {name} is {value:g}; give a number between 0 and 1, such as 0.95")
    source, output = Path(arguments.input), Path(arguments.output)
    if output.resolve() == source.resolve():
        raise UserError("command line: --output is --input; name another file, the input is needed to decide again")
    kind = format_of(output, arguments.format)
    found = decide(RunFolder(Path(arguments.run)), source, output, kind, *promises.values())
    for sentence in found.sentences():
        print(sentence)
    print(f"{found.tally.rows} rows -> {output}")


if __name__ == "__main__":
    run_command(main)
