"""Ready-made data: ``python -m llmcls.prepare NAME --out DIR`` writes CSV files for the recipes.

NAME is amazoncat-13k, ag_news, yelp, go_emotions, reuters, or hub (any dataset of the hub, by its columns). Writes CSV
files for train, validation and test, and label_mapping.json with the original name, the column and the count of every
label.
"""

from __future__ import annotations

from pathlib import Path

from llmcls.common.command import command_parser, run_command
from llmcls.common.user_error import UserError
from llmcls.datasets.prepared import Options, write
from llmcls.datasets.sources import SOURCES


def main(argv: list[str] | None = None) -> None:
    """Write the files of one dataset."""
    parser = command_parser("prepare", "Write a known dataset, or any dataset of the hub, as CSV files.")
    parser.add_argument("name", choices=sorted(SOURCES), help="the dataset; hub: any dataset, by its columns")
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument("--top", type=int, help="keep the most frequent labels (amazoncat-13k and reuters: 10)")
    parser.add_argument(
        "--all-labels", action="store_true", help="one column with all labels, as thousands of them need"
    )
    parser.add_argument("--keep-unlabelled", action="store_true", help="keep rows that have none of the kept labels")
    parser.add_argument("--validation", type=float, default=0.1, help="share of training rows, without a given split")
    parser.add_argument("--limit", type=int, help="maximum number of rows per split, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random draws")
    parser.add_argument("--source", help="reuters: the folder of reut2-*.sgm; hub: the dataset's name[:config]")
    parser.add_argument("--text", nargs="+", default=[], help="hub: the text columns")
    parser.add_argument("--label", help="hub: the label column (a class, or a list of classes)")
    a = parser.parse_args(argv)
    if not 0 < a.validation < 1:
        raise UserError(f"--validation is {a.validation}; it must be between 0 and 1")
    for name in ("top", "limit"):
        if getattr(a, name) is not None and getattr(a, name) < 1:
            raise UserError(f"--{name} is {getattr(a, name)}; it must be at least 1")
    options = Options(
        Path(a.out), a.top, a.keep_unlabelled, a.validation, a.seed, a.limit, a.source, a.text, a.label, a.all_labels
    )
    for line in write(SOURCES[a.name](options), options):
        print(line)


if __name__ == "__main__":
    run_command(main)
