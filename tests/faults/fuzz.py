"""Mutated recipes and tables: every one must be accepted, or refused in one short sentence, in a short time.

Each case is a function of its number, so a report names all that is needed to see it again::

    python -m tests.faults.fuzz --cases 5000
    python -m tests.faults.fuzz --first 1234 --cases 1 --show
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import logging
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmcls.common.system_errors import explain_system_error
from llmcls.common.user_error import UserError

LONGEST_MESSAGE, SLOWEST = 300, 2.0

LONG = "x" * 300
# ruff: noqa: E501
# Values as they stand in a file, from typing errors to attacks.
VALUES = [
    "2026-02-30", "2026-02-03", "2026-02-03 10:00:00", '!!int "abc"', '!!float "abc"', '!!timestamp "x"', "!!binary x",
    "!!set {a, b}", "!!omap [a: 1]", "!!python/object/apply:os.system [ls]", "!!str 7", "!!null x", "!unknown x",
    "9" * 5000, "-" + "9" * 400, "0x" + "f" * 6000, "1e400", "1e308", "-1e308", "1e-320", ".nan", ".inf", "-.inf",
    "[" * 1500 + "]" * 1500, "{a: " * 400 + "1" + "}" * 400, "010", "0o17", "0b11", "1:30:20", "1_000", "+5", "-0",
    '"\\0"', '"a\\0b"', '"\\ud800"', '"\\u202e"', '"\\x1b[31m"', '"\\n"', '"a\\tb"', LONG, f"{LONG}.csv", "é" * 260,
    "x" * 1_000_000, "[" + "1, " * 30_000 + "1]", "[" + ", ".join(f"c{i}" for i in range(20_000)) + "]",
    "&a [*a]", "&a {<<: *a}", "*nothing", "[]", "{}", "[[]]", "[{}]", "[null]", "{a: {b: {c: 1}}}", "{1: 2}",
    "? [a]\n    : b", "true", "false", "yes", "no", "on", "off", "null", "~", "", '""', "' '", "0", "1", "-1", "2",
    "3.5", "1000000", "1000000000", "2147483648", "4294967295", "4294967296", "18446744073709551616", "1e9", "0.5", "text",
    "a/b", "..", ".", "/", "/abs/path", "../../../x", "a\\b", "C:\\x", "~", "~nobody/x", "${HOME}", "${UNSET_NAME}",
    "${UNSET_NAME:-}", "$(ls)", "{text}", '"{text} {labels}"', '"{text}{text}"', "all-linear", "[all-linear]", "[q_proj]",
    "cosine", "focal", "auto", "windows", "head_tail", "[wandb]", "[tensorboard, tensorboard]", "[1, 1]", "[-1]",
    "[99999999999999999999]", "uid", "title", "[title]", "[uid]", "books", "[books]", "[books, books]", "f0.5", "f0",
    "recall@precision=0.9", "accuracy", "/dev/null", "/dev/zero", "/", "/etc", "/proc/self/mem", "recipe.yaml",
    "| \n      text\n      more", "'unclosed", '"unclosed', "a: b: c", "- a", "@", "`", "%", "&", "*", "!", "#", "|", ">",
]  # fmt: skip
NUMBERS = [
    "0", "1", "2", "3", "7", "-1", "64", "1000", "65536", "1000000", "1000000000", "2147483647", "2147483648", "4294967295",
    "4294967296", "1e-30", "1.0e-300", "0.1", "0.999", "1.0", "2.5", "9.99", "1.0e+300", "1.0e+9", "[0]", "[0, 1]", "[4294967295]",
]  # fmt: skip
CHOICES = {
    "data__truncation": "windows", "data__prompt": '"{text} is"', "model__pooling": "attention", "model__bidirectional": "true",
    "train__loss": "asymmetric", "train__sampling": "balanced", "train__pos_weight": "balanced", "train__packing": "false",
    "train__calibration": "temperature", "train__thresholds": "global", "model__lora_variant": "dora",
}  # fmt: skip
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 10)}]\n" for i in range(9)
)
CHARACTERS = [
    "\x00",
    "\x07",
    "\t",
    "\r",
    "\u2028",
    "\ufeff",
    "\ud800",
    "'",
    '"',
    ":",
    "-",
    "{",
    "[",
    "#",
    "&",
    "*",
    "é",
    "\U0001f600",
]
CELLS = [
    "", " ", "NA", "nan", "None", "2", "1.0", "true", "TRUE", "0.5", "-1", "é", "\x00", "\x1b[0m", "\u2028", "\U0001f600" * 50,
    "x" * 200_000, "a," * 50, 'quote " inside', '"', "line\nend", "\r", "\t", "9" * 400, "1e400", "<script>", "=cmd()",
]  # fmt: skip
JSON_CELLS: list[Any] = [
    None, True, 1, 1.5, "1", "", [], [1], {}, {"a": 1}, [[]], 10**30, 2**63, -(2**63) - 1, float("nan"), "\ud800", "\x00", "x" * 200_000,
    [None], [{"a": [1, "b"]}], "2026-01-01", "2026-01-01T00:00:00",
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What a mutation made: a recipe file, overrides, a line that describes it, and whether it is trained too."""

    recipe: Path
    overrides: list[str]
    about: str
    trains: bool = False


@dataclass(frozen=True)
class Outcome:
    """What happened to a case: "accepted", "refused" or "traceback"; its message; and its seconds of processor time."""

    case: int
    about: str
    kind: str
    message: str
    seconds: float
    trained: bool

    @property
    def good(self) -> bool:
        """Whether a user would have been told, shortly and soon."""
        slow = self.seconds >= SLOWEST and not (self.trained and self.kind == "accepted")
        return self.kind != "traceback" and len(self.message) < LONGEST_MESSAGE and not slow


class Fuzzer:
    """Makes and runs cases over a model and tables.

    Parameters
    ----------
    model : Path
        A tiny pretrained model.
    tables : Path
        A folder with train.csv, validation.csv and test.csv.
    folder : Path
        Where cases are written.
    """

    def __init__(self, model: Path, tables: Path, folder: Path) -> None:
        self.folder, self.tables = folder, tables
        with (tables / "train.csv").open(encoding="utf-8", newline="") as file:
            self.rows = list(csv.DictReader(file))[:40]
        self.columns = list(self.rows[0])
        self.labels = [c for c in self.columns if c not in ("uid", "title", "description")]
        self.values: dict[str, dict[str, Any]] = {
            "data": {
                "dataset_name": "fuzz", "id_column": "uid", "text_fields": ["title", "description"], "max_length": 32,
                "train_csv": str(tables / "train.csv"), "val_csv": str(tables / "validation.csv"),
                "label_columns": self.labels,
            },
            "model": {"model_name": str(model), "torch_dtype": "float32", "lora_r": 2},
            "train": {"batch_size": 4, "num_train_epochs": 1, "report_to": []},
            "exp": {"output_root": str(folder / "outputs"), "seeds": [1], "baselines": False},
        }  # fmt: skip

    def make(self, number: int) -> Case:
        """The case of a number."""
        rng = random.Random(number)
        makers: list[Callable[[random.Random], Case]] = [
            self._value, self._number, self._override, self._characters, self._lines, self._bytes, self._csv, self._json,
            self._table_bytes, self._number, self._csv, self._json,
        ]  # fmt: skip
        case = makers[number % len(makers)](rng)
        return replace(case, trains=rng.random() < 0.2)

    def run(self, number: int, run_case: Callable[[Case], None]) -> Outcome:
        """Make a case, run it, and say what happened."""
        case = self.make(number)
        shutil.rmtree(self.folder / "outputs", ignore_errors=True)
        start, kind, message = time.process_time(), "accepted", ""
        try:
            with _limits():
                run_case(case)
        except Exception as error:
            told = explain_system_error(error) if isinstance(error, OSError) else error
            kind = "refused" if isinstance(told, UserError) else "traceback"
            message = str(told) if kind == "refused" else "".join(traceback.format_exception(error))
        return Outcome(number, case.about, kind, message, time.process_time() - start, case.trains)

    def _write(self, content: str | bytes, about: str, overrides: list[str] | None = None) -> Case:
        path = self.folder / "recipe.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return Case(path, overrides or [], about)

    def _text(self, **changes: str) -> str:
        """The recipe as text, with values replaced as they stand in the file; keys are section__key."""
        lines = []
        for section, values in self.values.items():
            lines.append(f"{section}:")
            written = {key: json.dumps(value) for key, value in values.items()}
            for name, text in changes.items():
                of, _, key = name.partition("__")
                if of == section:
                    written[key] = text
            lines += [f"  {key}: {text}" for key, text in written.items()]
        return "\n".join(lines) + "\n"

    def _some_key(self, rng: random.Random) -> str:
        import dataclasses

        from llmcls.recipe.schema import SECTIONS

        section = rng.choice(list(SECTIONS))
        return f"{section}__{rng.choice(dataclasses.fields(SECTIONS[section])).name}"

    def _value(self, rng: random.Random) -> Case:
        if rng.random() < 0.03:
            return self._write(BOMB + self._text(data__label_columns="*j"), "alias bomb")
        changes = {self._some_key(rng): rng.choice(VALUES) for _ in range(rng.choice([1, 1, 1, 2]))}
        return self._write(self._text(**changes), str({k: v[:60] for k, v in changes.items()}))

    def _number(self, rng: random.Random) -> Case:
        """A recipe with numbers of the right type."""
        import dataclasses

        from llmcls.recipe.schema import SECTIONS

        keys = [
            f"{name}__{f.name}"
            for name, section in SECTIONS.items()
            for f in dataclasses.fields(section)
            if re.search(r"\b(int|float)\b", str(f.type))
        ]
        changes = {rng.choice(keys): rng.choice(NUMBERS) for _ in range(rng.choice([1, 2, 3]))}
        if rng.random() < 0.3:
            changes |= dict(rng.sample(sorted(CHOICES.items()), 2))
        return self._write(self._text(**changes), str(changes))

    def _override(self, rng: random.Random) -> Case:
        key, value = self._some_key(rng).replace("__", "."), rng.choice(VALUES)
        override = rng.choice(
            [f"{key}={value}", f"{key.partition('.')[2]}={value}", f"{key} {value}", f"{value}={value}"]
        )
        return self._write(self._text(), f"override {override[:80]!r}", [override])

    def _characters(self, rng: random.Random) -> Case:
        text = self._text()
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice(CHARACTERS) * rng.choice([1, 1, 500]) + text[at + rng.randint(0, 2) :]
        return self._write(text, "characters")

    def _lines(self, rng: random.Random) -> Case:
        lines = self._text().splitlines(keepends=True)
        for _ in range(rng.randint(1, 3)):
            at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
            change = rng.randrange(5)
            if change == 0:
                del lines[at]
            elif change == 1:
                lines.insert(at, lines[other])
            elif change == 2:
                lines[at], lines[other] = lines[other], lines[at]
            elif change == 3:
                lines[at] = rng.choice([" ", "\t", "    ", "- ", "? "]) + lines[at]
            else:
                lines[at] = lines[at].lstrip()
        return self._write("".join(lines), "lines")

    def _bytes(self, rng: random.Random) -> Case:
        return self._write(_mutated_bytes(self._text().encode(), rng), "bytes of a recipe")

    def _table_case(self, rng: random.Random, name: str, content: bytes, about: str) -> Case:
        path = self.folder / name
        path.write_bytes(content)
        changes = {rng.choice(["data__train_csv", "data__train_csv", "data__val_csv"]): json.dumps(str(path))}
        kind = rng.random()
        if kind < 0.2:
            changes |= {"data__id_column": "null"}
        elif kind < 0.4:
            changes |= {"data__label_columns": "[title]", "data__text_fields": "[description]",
                        "model__problem_type": rng.choice(["single_label_classification", "binary_classification"])}  # fmt: skip
        elif kind < 0.5:
            changes |= {
                "data__label_columns": "[title]",
                "data__text_fields": "[description]",
                "data__label_separator": '" "',
            }
        return self._write(self._text(**changes), f"{about} ({', '.join(changes)})")

    def _changed_rows(self, rng: random.Random, cells: list[Any]) -> tuple[list[dict[str, Any]], list[str]]:
        rows: list[dict[str, Any]] = [dict(row) for row in self.rows[: rng.choice([1, 3, 40])]]
        texts = ["title", "description", "uid"]
        columns = [rng.choice(texts if rng.random() < 0.5 else self.columns) for _ in range(rng.randint(1, 2))]
        for column in columns:
            cell = rng.choice(cells)
            for row in rows if rng.random() < 0.3 else [rng.choice(rows)]:
                row[column] = cell
        return rows, columns

    def _csv(self, rng: random.Random) -> Case:
        rows, changed = self._changed_rows(rng, CELLS)
        header = list(self.columns)
        odd = rng.randrange(12)
        if odd == 0:
            header[rng.randrange(len(header))] = rng.choice([*CELLS, "title", "x" * 1_000_000])
        text = io.StringIO()
        writer = csv.writer(
            text,
            quoting=rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
            lineterminator=rng.choice(["\n", "\r\n", "\r"]),
        )
        if odd != 1:
            writer.writerow(header)
        if odd == 2:
            writer.writerow([f"c{i}" for i in range(3000)])
        for row in rows if odd != 3 else []:
            writer.writerow([row[c] for c in self.columns])
        content = text.getvalue().encode(rng.choice(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16"]))
        return self._table_case(
            rng, rng.choice(["t.csv", "t.csv", "t.tsv", "t.CSV"]), content, f"CSV with odd {changed}"
        )

    def _json(self, rng: random.Random) -> Case:
        rows, changed = self._changed_rows(rng, JSON_CELLS)
        odd = rng.randrange(12)
        if odd == 0:
            rows[rng.randrange(len(rows))][rng.choice(["new", "", "\x00", "x" * 300])] = rng.choice(JSON_CELLS)
        elif odd == 1:
            del rows[rng.randrange(len(rows))][rng.choice(self.columns)]
        elif odd == 2:
            rows = [{c: row[c] for c in reversed(self.columns)} for row in rows]
        lines = [json.dumps(row) for row in rows]
        if odd == 3:
            lines.insert(
                rng.randrange(len(lines) + 1),
                rng.choice(["", "null", "[]", "{}", "1", "[" * 5000, '{"a": ' * 3000, "{", "NaN"]),
            )
        content = "[" + ",".join(lines) + "]" if odd == 4 or rng.random() < 0.1 else "\n".join(lines) + "\n"
        return self._table_case(
            rng, rng.choice(["t.jsonl", "t.jsonl", "t.json"]), content.encode(), f"JSONL with odd {changed}"
        )

    def _table_bytes(self, rng: random.Random) -> Case:
        kind = rng.choice(["csv", "jsonl", "parquet"])
        if kind == "csv":
            content = (self.tables / "train.csv").read_bytes()[:4000]
        elif kind == "jsonl":
            content = "".join(json.dumps(row) + "\n" for row in self.rows).encode()
        else:
            import pyarrow as pa
            import pyarrow.parquet as pq

            sink = pa.BufferOutputStream()
            pq.write_table(pa.Table.from_pylist(self.rows), sink)
            content = sink.getvalue().to_pybytes()
        return self._table_case(rng, f"t.{kind}", _mutated_bytes(content, rng), f"bytes of a {kind} table")


def _mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flipped, removed, doubled or foreign bytes, a cut, or another encoding."""
    change = rng.randrange(7)
    if change == 0:
        return content[: rng.randrange(len(content) + 1)]
    if change == 1:
        return content.decode().encode("utf-16") if content[:1] != b"P" else content[::-1]
    if change == 2:
        at = rng.randrange(len(content))
        return content[:at] + content[at : at + 200] * rng.randint(2, 4) + content[at + 200 :]
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 3, 30])):
        at = rng.randrange(len(changed))
        if change == 3:
            changed[at] ^= 1 << rng.randrange(8)
        elif change == 4:
            changed[at] = rng.choice(b'\x00\xff\x80"\n\r\t,{}[]:')
        elif change == 5:
            del changed[at : at + rng.randint(1, 20)]
        else:
            changed[at:at] = rng.randbytes(rng.randint(1, 8))
        if not changed:
            break
    return bytes(changed)


@contextmanager
def _limits(seconds: int = 60) -> Iterator[None]:
    """End a case that does not end."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"no end after {seconds} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check_case(case: Case) -> None:
    """What `llmcls check` does, and then what training does up to its first step."""
    import torch
    from accelerate import PartialState
    from accelerate.state import AcceleratorState

    from llmcls.check import main
    from llmcls.model.build import build_classifier
    from llmcls.recipe.load import load_recipe
    from llmcls.train import main as train
    from llmcls.training.inputs import load_inputs
    from llmcls.training.optimizer import build_optimizer

    main([str(case.recipe), *(["--"] if case.overrides else []), *case.overrides])
    recipe = load_recipe(case.recipe, case.overrides)
    inputs = load_inputs(recipe, PartialState(cpu=True))
    device = torch.device("cpu")
    build_optimizer(build_classifier(recipe, inputs.labels, device), recipe, device, False)
    if case.trains:
        AcceleratorState._reset_state(reset_partial_state=True)
        train([str(case.recipe), "--", *case.overrides, "train.max_steps=1", "exp.seeds=[1]", "train.report_to=[]"])


def small_fuzzer(folder: Path) -> Fuzzer:
    """A fuzzer with a tiny model and tables of its own."""
    from llmcls.datasets.products import make_corpus, write_data
    from llmcls.model.tiny import write_tiny_llama

    write_tiny_llama(folder / "model", make_corpus(300, seed=0), seed=0, steps=1)
    write_data(folder / "tables", 7, {"train": 60, "validation": 20, "test": 20})
    (folder / "cases").mkdir()
    return Fuzzer(folder / "model", folder / "tables", folder / "cases")


def main() -> None:
    """Run cases and report those that are not good; the exit code is 1 if there are any."""
    import resource

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="print every outcome as a whole")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    os.environ |= {
        "HF_DATASETS_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
    try:
        fuzzer = small_fuzzer(folder)
        logging.disable(logging.CRITICAL)
        outcomes: list[Outcome] = []
        for number in range(arguments.first, arguments.first + arguments.cases):
            if arguments.show:
                print(f"running case {number}", flush=True)
            outcome = fuzzer.run(number, check_case)
            outcomes.append(outcome)
            if not outcome.good or arguments.show:
                text = (
                    outcome.message
                    if arguments.show
                    else outcome.message.strip().splitlines()[-1:] and outcome.message.strip().splitlines()[-1][:200]
                )
                print(
                    f"case {number}: {outcome.kind}, {outcome.seconds:.1f} s, {outcome.about}\n    {text}", flush=True
                )
            if number % 100 == 99:
                shutil.rmtree(folder / "cache", ignore_errors=True)
        kinds = {kind: sum(o.kind == kind for o in outcomes) for kind in ("accepted", "refused", "traceback")}
        longest = max(len(o.message) for o in outcomes if o.kind != "traceback")
        print(
            f"{len(outcomes)} cases: {kinds}; slowest {max(o.seconds for o in outcomes if not o.trained):.2f} s; longest message {longest}"
        )
        sys.exit(not all(outcome.good for outcome in outcomes))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
