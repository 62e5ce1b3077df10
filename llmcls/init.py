"""Write a recipe for a table: ``python -m llmcls.init data.csv [--labels COLUMN ...]``.

Looks at the file (separator, encoding, header, texts, labels) and at this machine, says what it found, and writes a
commented recipe that `llmcls.check` accepts. What the file does not tell is asked for on a terminal, or given as an
option.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import datasets

from llmcls.common.command import command_parser, run_command
from llmcls.common.files import write_text
from llmcls.common.logs import configure_logging
from llmcls.common.user_error import UserError
from llmcls.data.csv_files import find_format
from llmcls.data.labels import label_space, read_labels
from llmcls.data.tables import looks_like_row, read_table
from llmcls.engine.choice import needed_gib
from llmcls.engine.hardware import find_hardware
from llmcls.engine.profiles import choose_profile
from llmcls.intake.columns import Column, label_columns, look_at, text_columns
from llmcls.intake.proposal import Choices, dataset_name, propose, sibling
from llmcls.intake.recipe_text import recipe_text
from llmcls.recipe.load import load_recipe
from llmcls.recipe.schema import DataSection, Recipe


def main(argv: list[str] | None = None) -> None:
    """Look at a table and write a recipe."""
    parser = command_parser("init", "Look at a table, and write a commented recipe for it.")
    parser.add_argument("data", help="the training file: CSV, TSV, Excel, JSONL or Parquet")
    parser.add_argument("--labels", nargs="+", default=[], metavar="COLUMN", help="the label column or columns")
    parser.add_argument("--text", nargs="+", default=[], metavar="COLUMN", help="the text columns")
    parser.add_argument("--id", metavar="COLUMN", help="a column of unique ids")
    parser.add_argument("--problem-type", help="as model.problem_type of a recipe")
    parser.add_argument("--label-separator", help="what separates the labels of a cell")
    parser.add_argument("--csv-separator", help="what separates the cells, if the file does not tell")
    parser.add_argument("--encoding", help="the encoding of the file, if it does not tell")
    parser.add_argument("--validation", metavar="FILE", help="a validation file; else a part is held out")
    parser.add_argument("--test", metavar="FILE", help="a test file")
    parser.add_argument("--model", help="a folder, or a model of the hub")
    parser.add_argument("--name", help="a name for the results; that of the file if left out")
    parser.add_argument("--out", help="the recipe to write; recipes/NAME.yaml if left out")
    parser.add_argument("--force", action="store_true", help="replace the recipe if it exists")
    arguments = parser.parse_args(argv)
    configure_logging(main_process=True)
    path = Path(arguments.data)
    name = arguments.name or dataset_name(path)
    out = Path(arguments.out or Path("recipes") / f"{name}.yaml")
    if out.exists() and not arguments.force:
        raise UserError(f"{out} exists; give another file with --out, or replace it with --force")
    datasets.disable_progress_bars()
    data = DataSection(name, str(path), [], csv_separator=arguments.csv_separator, encoding=arguments.encoding)
    written = _written(path, data)
    table = read_table(path, "data", data)
    print(f"{path}: {len(table):,} rows{written}")
    if looks_like_row(table.column_names) and not (arguments.text and arguments.labels):
        raise UserError(
            f"{path}: its first line looks like a row, not like names of columns; add a header line, or name the "
            "columns as they are with --text and --labels"
        )
    columns = look_at(table)
    choices = Choices(
        text=arguments.text or _chosen_text(columns, arguments.labels),
        labels=arguments.labels or _chosen_labels(columns, arguments.text),
        id_column=arguments.id,
        problem_type=arguments.problem_type,
        label_separator=arguments.label_separator,
        model=arguments.model,
        validation=arguments.validation,
        test=arguments.test,
    )
    choices = replace(
        choices,
        validation=choices.validation or _sibling(path, ("validation", "valid", "val", "dev"), data, choices),
        test=choices.test or _sibling(path, ("test",), data, choices),
    )
    hardware = find_hardware()
    proposal = propose(table, str(path), data, choices, hardware)
    draft = out.with_name(f".{out.name}.draft")
    try:
        write_text(draft, recipe_text(proposal, str(out), "cpu"))
        recipe = load_recipe(draft)
        recipe.source = str(out)
        _require_labels(recipe, table)
    finally:
        draft.unlink(missing_ok=True)
    profile, reason = choose_profile(hardware, recipe, lambda ranks: needed_gib(recipe, ranks))
    write_text(out, recipe_text(proposal, str(out), profile))
    form = proposal.form
    print(f"texts: {', '.join(choices.text)}; up to {data.max_length} tokens")
    print(f"labels: {', '.join(choices.labels[:5])}{', ...' if len(choices.labels) > 5 else ''} ({form.reason})")
    print(f"task: {form.problem_type}, {len(form.names)} labels")
    print(f"model: {proposal.model_name}; profile: {profile} ({reason})")
    print(f"wrote {out}; next: python -m llmcls.check {out}")


def _written(path: Path, data: DataSection) -> str:
    """How a CSV file is written, for a sentence. An encoding that is not UTF-8 goes into the recipe."""
    if path.suffix.lower() not in (".csv", ".tsv") or not path.is_file():
        return ""
    form = find_format(path, "data", data)
    if data.encoding is None and form.encoding == "cp1252":
        data.encoding = form.encoding
    names = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
    return (
        f", {len(form.header)} columns separated by {names.get(form.separator, repr(form.separator))}, {form.encoding}"
    )


def _sibling(path: Path, names: tuple[str, ...], data: DataSection, choices: Choices) -> str | None:
    """The file of another split beside ``train.csv``, if it has the columns. Test files of competitions lack labels."""
    found = sibling(path, names)
    if found is None:
        return None
    missing = [c for c in (*choices.text, *choices.labels) if c not in read_table(found, "data", data).column_names]
    if missing:
        print(f"{found}: has no column {missing[0]!r}, so the recipe does not use it")
        return None
    return found


def _chosen_text(columns: list[Column], labels: list[str]) -> list[str]:
    """The text columns, which the user names if the table does not tell."""
    found = [name for name in text_columns(columns) if name not in labels]
    return found or _ask("text", [[c.name] for c in columns if c.name not in labels and c.kind != "empty"])


def _chosen_labels(columns: list[Column], text: list[str]) -> list[str]:
    """The label columns, which the user names if the table does not tell."""
    candidates = [names for names in label_columns(columns) if not set(names) & set(text)]
    if len(candidates) == 1:
        return candidates[0]
    return _ask("labels", candidates or [[c.name] for c in columns if c.kind not in ("text", "empty")])


def _ask(option: str, candidates: list[list[str]]) -> list[str]:
    """Let the user choose columns on a terminal.

    Raises
    ------
    UserError
        If there is no terminal, or no answer.
    """
    shown = [", ".join(names) for names in candidates]
    if not candidates:
        raise UserError(f"no column looks like {option}; name the columns with --{option} COLUMN ...")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        listed = "; ".join(shown)
        raise UserError(
            f"more than one column may hold the {option}: {listed[:150]}; name it with --{option} COLUMN ..."
        )
    print(f"Which column holds the {option}?")
    for number, names in enumerate(shown, 1):
        print(f"  {number}  {names}")
    while True:
        try:
            answer = input(f"number from 1 to {len(shown)}: ").strip()
        except EOFError:
            raise UserError(f"no answer; name the columns with --{option} COLUMN ...") from None
        if answer.isdigit() and 1 <= int(answer) <= len(shown):
            return candidates[int(answer) - 1]


def _require_labels(recipe: Recipe, table: datasets.Dataset) -> None:
    """Read the labels of all rows, as `check` will."""
    labels = label_space(recipe, table)
    cells = {column: table[column][:] for column in labels.columns}
    read_labels(cells, list(range(len(table))), labels, recipe.data.train_csv)


if __name__ == "__main__":
    run_command(main)
