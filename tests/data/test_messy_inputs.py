"""Tables as real programs write them: each is read rightly, or refused in one true sentence that names what to do."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from llmcls.common.user_error import UserError
from llmcls.data.labels import label_space, read_labels
from llmcls.data.tables import read_table, require_columns
from llmcls.recipe.load import load_recipe
from llmcls.recipe.schema import Recipe

ROWS = [('Grüße, "Jörg"; bis\nbald', "joy"), ("it's 5|6", "anger"), ("plain", "joy")]
RUSSIAN = [("привет, мир", "да"), ("нет", "нет")]
SINGLE, BINARY = "single_label_classification", "binary_classification"
JOY = {"text": [text for text, _ in ROWS], "names": ["anger", "joy"], "values": [1, 0, 1]}


def excel(separator: str, encoding: str, rows: list[tuple[str, ...]] = ROWS, head: str = "") -> bytes:
    """A table as Excel saves it: CRLF, quotes only where needed."""
    frame = pd.DataFrame(rows, columns=["text", "label"])
    text = head + frame.to_csv(sep=separator, index=False, lineterminator="\r\n")
    return text.encode(encoding)


def pandas(labels: list[Any], index: bool = False, **options: Any) -> bytes:
    """A data frame of three rows with these labels, as `DataFrame.to_csv` writes it."""
    return pd.DataFrame({"text": ["one", "two", "three"], "label": labels}).to_csv(index=index, **options).encode()


def workbook() -> bytes:
    pytest.importorskip("openpyxl")
    file = io.BytesIO()
    frame = pd.DataFrame({"text": ["one", "two", "three"], "label": [True, False, True]})
    frame.to_excel(file, index=False)
    return file.getvalue()


def parquet() -> bytes:
    file = io.BytesIO()
    pd.DataFrame({"text": ["one", "two", "three"], "label": LISTS}).to_parquet(file)
    return file.getvalue()


LISTS = [["joy", "love"], [], ["anger"]]
LISTED = {"names": ["anger", "joy", "love"], "values": [[0, 1, 1], [0, 0, 0], [1, 0, 0]]}
NUMPY = [str(np.array(names, dtype=object)) for names in LISTS]


@dataclass(frozen=True)
class Messy:
    """A table, what the recipe says about it, and what must come of it."""

    content: Any
    expected: dict[str, Any] | str
    name: str = "train.csv"
    kind: str = SINGLE
    recipe: dict[str, Any] = field(default_factory=dict)
    said: str = ""


MULTI = {"kind": "multi_label_classification"}
INPUTS: dict[str, Messy] = {
    # Separators and encodings.
    "Excel, European CSV": Messy(excel(";", "cp1252"), JOY, said="is read as Windows-1252"),
    "Excel, CSV UTF-8": Messy(excel(";", "utf-8-sig"), JOY),
    "Excel, Unicode text": Messy(excel("\t", "utf-16"), JOY),
    "PowerShell, UTF-16 without a mark": Messy(excel(",", "utf-16-le"), JOY),
    "Excel, line that names the separator": Messy(excel(";", "utf-8-sig", head="sep=;\r\n"), JOY),
    "tabs in a .csv": Messy(excel("\t", "utf-8"), JOY),
    "commas in a .tsv": Messy(excel(",", "utf-8"), JOY, name="train.tsv"),
    "database export with |": Messy(excel("|", "utf-8"), JOY),
    "old Macintosh line ends": Messy(b"text,label\rone,joy\rtwo,love\r", {"text": ["one", "two"], "values": [0, 1]}),
    "Cyrillic": Messy(excel(";", "cp1251", RUSSIAN), "name its encoding, such as data.enc"),
    "Cyrillic, named": Messy(
        excel(";", "cp1251", RUSSIAN), {"names": ["да", "нет"]}, recipe={"encoding": "cp1251"}
    ),
    "files glued together": Messy(
        "text,label\nGrüße,joy\nnaïve,love\n".encode() + "schön,joy\n".encode("cp1252"), "is UTF-8 but not in line 4"
    ),
    "the wrong separator named": Messy(
        excel(",", "utf-8"), "set data.csv_separator=',', or leave it out", recipe={"csv_separator": ";"}
    ),
    # Rows and headers.
    "spreadsheet with empty columns and rows": Messy(
        b"text;label;;\r\none;joy;;\r\ntwo;love;;\r\n;;;\r\n;;;\r\n", {"text": ["one", "two"], "values": [0, 1]}
    ),
    "blank lines": Messy(b"\n\ntext,label\n\none,joy\n\n\ntwo,love\n\n", {"text": ["one", "two"], "values": [0, 1]}),
    "a space after each comma": Messy(
        b'text, label\n"one, two", joy\nthree, love\n', {"text": ["one, two", "three"], "names": ["joy", "love"]}
    ),
    "pandas with an index": Messy(pandas(["joy", "love", "joy"], index=True), {"values": [0, 1, 0]}),
    "R with row names": Messy(b'"text","label"\n"1","one","joy"\n"2","two","love"\n', r"\(R: row.names=FALSE\)"),
    "pandas to_json": Messy(
        pd.DataFrame({"text": ["one", "two"], "label": ["joy", "love"]}).to_json().encode(), "one object of columns",
        "train.json",
    ),
    "pandas to_json, records": Messy(
        pd.DataFrame({"text": ["one", "two"], "label": ["joy", "love"]}).to_json(orient="records").encode(),
        {"text": ["one", "two"], "values": [0, 1]}, "train.json",
    ),
    "texts with commas, not quoted": Messy(b"text,label\none, two,joy\n", r"row 1 \(line 2\) has 3 cells, the header"),
    "a quote that never ends": Messy(b'text,label\none,joy\n"two,joy\nthree,love\n', "line 3: a text that begins with"),
    "Spark's backslash quotes": Messy(b'text,label\n"say \\"hi\\", you",joy\n', r'is written \\"; CSV doubles it'),
    "header only": Messy(b"text,label\n", "has no rows; add at least one row below the header"),
    "no header": Messy(
        b"joy,I am so happy about the new phone!\nanger,Never again do I buy here.\n", "its first line looks like a row"
    ),
    "nothing": Messy(b"", "is empty; its first line must name the columns"),
    "NUL after a power cut": Messy(b"text,label\none,joy\n" + bytes(8), "line 3 has NUL characters; the file is"),
    "a workbook named .csv": Messy(b"PK\x03\x04" + bytes(30), "not a CSV file but an Excel workbook"),
    "a web page named .csv": Messy(b"\n<!doctype html><html>", "not a CSV file but a web page"),
    "a pointer of Git LFS": Messy(b"version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`"),
    "Excel workbook": Messy(workbook, {"names": ["not_label", "label"], "values": [1, 0, 1]}, "train.xlsx", BINARY),
    "old Excel workbook": Messy(b"\xd0\xcf\x11\xe0", "save it as .xlsx or as CSV UTF-8", "train.xls"),
    "JSON lines as UTF-16": Messy('{"text": "a"}\n'.encode("utf-16"), "is UTF-16; JSON is UTF-8", "train.jsonl"),
    # Labels.
    "pandas, lists": Messy(pandas(LISTS), LISTED, **MULTI),
    "pandas, lists of numpy texts": Messy(pandas([[np.str_(n) for n in names] for names in LISTS]), LISTED, **MULTI),
    "numpy arrays": Messy(pandas(NUMPY), LISTED, **MULTI),
    "JSON lists in a CSV": Messy(pandas(['["joy", "love"]', "[]", '["anger"]']), LISTED, **MULTI),
    "lists, and a separator": Messy(pandas(LISTS), LISTED, recipe={"label_separator": ","}, **MULTI),
    "lists in JSON lines": Messy(
        b'{"text": "a", "label": ["joy", "love"]}\n{"text": "b", "label": []}\n{"text": "c", "label": ["anger"]}\n',
        LISTED, "train.jsonl", **MULTI,
    ),
    "lists in Parquet": Messy(parquet, LISTED, "train.parquet", **MULTI),
    "lists of one class": Messy(pandas([["joy"], ["love"], ["joy"]]), {"names": ["joy", "love"], "values": [0, 1, 0]}),
    "lists where one class is meant": Messy(pandas(LISTS), "set model.problem_type=multi_label_classification"),
    "vectors of 0 and 1": Messy(pandas([[0, 1], [1, 1], [0, 0]]), "write a column for each of the 2 labels", **MULTI),
    "joy, love": Messy(pandas(["joy, love", "love", "joy"]), "'joy, love' .*set data.label_separator=','", **MULTI),
    "a|b with another separator": Messy(
        pandas(["a|b", "b", "a"]), r"no cell has data.label_separator=';', but '\|' .*set data.label_separator='\|'",
        recipe={"label_separator": ";"}, **MULTI,
    ),
    "combinations as classes": Messy(
        pandas(["joy|love", "love", "joy"]), r"multi_label_classification and data.label_separator='\|'"
    ),
    "classes in a multi-label recipe": Messy(
        pandas(["joy", "love", "joy"]), "set model.problem_type=single_label_classification", **MULTI
    ),
    "names of labels instead of a column": Messy(
        pandas(["joy", "love", "joy"]), r"name the column: data.label_columns=\[label\]",
        recipe={"label_columns": ["love"]}, **MULTI,
    ),
    "three classes in a binary recipe": Messy(
        pandas(["joy", "love", "fear"]), "set model.problem_type=single_label_classification", kind=BINARY
    ),
    "R and Excel truth": Messy(pandas(["TRUE", "FALSE", "TRUE"]), {"values": [1, 0, 1]}, kind=BINARY),
    "pandas truth as numbers with a point": Messy(pandas([1.0, 0.0, 1.0]), {"values": [1, 0, 1]}, kind=BINARY),
    "a class without a value": Messy(pandas(["joy", None, "love"]), "row 2, column 'label': the class is empty"),
}  # fmt: skip


@pytest.mark.parametrize("messy", INPUTS.values(), ids=INPUTS)
def test_a_messy_table_is_read_rightly_or_refused_with_the_cause(
    tmp_path: Path, log_lines: list[str], messy: Messy
) -> None:
    path = tmp_path / messy.name
    path.write_bytes(messy.content() if callable(messy.content) else messy.content)
    data = {"dataset_name": "messy", "train_csv": str(path), "label_columns": ["label"], "text_fields": ["text"]}
    sections = {"data": data | messy.recipe, "model": {"model_name": "any", "problem_type": messy.kind}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(sections, allow_unicode=True), encoding="utf-8")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    if isinstance(messy.expected, str):
        with pytest.raises(UserError, match=messy.expected) as told:
            read(recipe, path)
        assert len(str(told.value).replace(str(path), "train.csv")) < 300
        return
    found = read(recipe, path)
    assert {key: found[key] for key in messy.expected} == messy.expected
    assert messy.said in "\n".join(log_lines)


def read(recipe: Recipe, path: Path) -> dict[str, Any]:
    """The texts, the names of the labels, and the label values of the rows."""
    table = read_table(path, "data.train_csv", recipe.data)
    require_columns(table, recipe.data.text_columns(), str(path), "data.text_fields")
    labels = label_space(recipe, table)
    values = read_labels(table[:], list(range(len(table))), labels, str(path))
    return {"text": table["text"][:], "names": labels.names, "values": values}
