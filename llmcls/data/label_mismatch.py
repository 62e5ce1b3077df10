"""Label columns that hold something else than the recipe says: the true cause, and the key to set."""

from __future__ import annotations

import datasets

from llmcls.common.user_error import UserError
from llmcls.data.label_cells import (
    TRUTH,
    example_of,
    list_items,
    probability,
    separator_in,
    soft_cell,
    split_names,
)
from llmcls.data.tables import cell_text

MULTI_LABEL = "multi_label_classification"


def require_hard(values: list[str], where: str, numbers: bool = False) -> None:
    """Refuse probabilities where labels are meant: cells that give them by name, and a column of such numbers."""
    soft = [value for value in values if soft_cell(value)]
    if numbers and len(values) > 2 and all(probability(value) is not None for value in values):
        soft = [value for value in values if value not in TRUTH]
    if soft:
        raise UserError(
            f"{where}: cells such as {example_of(soft)!r} are probabilities; set data.soft_labels=true to train with "
            "them, or write the labels"
        )


def require_truth(values: list[str], where: str) -> None:
    """Refuse a column of names where 0 and 1 are meant; a single wrong cell is named by `read_labels` instead."""
    require_hard(values, where, numbers=True)
    names = [value for value in values if value and value not in TRUTH]
    if len(names) == 0 or (len(names) < len(values) / 2 and len(names) < 3):
        return
    found = separator_in(values)
    if found:
        raise UserError(
            f"{where}: cells such as {example_of(values, found)!r} are names of labels, not 0 or 1; "
            f"set data.label_separator={found!r}"
        )
    raise UserError(
        f"{where}: cells such as {example_of(names)!r} are names, not 0 or 1; set "
        "model.problem_type=single_label_classification, or data.label_separator if a cell can name several labels"
    )


def require_single(values: list[str], where: str) -> None:
    """Refuse lists of several classes where each row has one."""
    several = [value for value in values if len(list_items(value) or ()) > 1]
    if several:
        raise UserError(
            f"{where}: cells such as {example_of(several)!r} are lists of several labels; "
            f"set model.problem_type={MULTI_LABEL}"
        )


def require_no_separator(values: list[str], where: str) -> None:
    """Refuse cells with several names where each row has one class: each combination would be a class."""
    found = separator_in(values)
    names = set() if found is None else {name for value in values for name in split_names(value, found)}
    if found is not None and len(names) < len(values):
        raise UserError(
            f"{where}: cells such as {example_of(values, found)!r} name several labels; set model.problem_type="
            f"{MULTI_LABEL} and data.label_separator={found!r}, or replace the {found!r} in names of classes"
        )


def require_no_names(table: datasets.Dataset, columns: list[str], path: str) -> None:
    """Refuse names of labels where names of columns are meant."""
    missing = [column for column in columns if column not in table.column_names]
    if not missing:
        return
    rows = table[: min(len(table), 1000)]
    for column, cells in rows.items():
        names = {name for cell in cells for name in list_items(cell_text(cell)) or [cell_text(cell).strip()]}
        if missing[0] in names:
            raise UserError(
                f"{path} has no column {missing[0]!r} (data.label_columns), but column {column!r} has cells with it; "
                f"name the column: data.label_columns=[{column}]"
            )
