"""Capture what a terminal shows of a training, a mistake and a Ctrl-C, and write it to docs/terminal.md.

``python docs/make_terminal_captures.py [--out FILE]``

Each scene is a real process in a pseudo-terminal of 60 and of 120 columns, with a tiny model on the CPU. What the
process writes goes through a small terminal emulator, so that the bar is shown as it stands on the screen. Needs a
pseudo-terminal, so Linux or macOS. Look at the page after a change of what a training prints.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import tempfile
import termios
import time
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from llmcls.datasets.products import TOPICS, make_corpus, write_data
from llmcls.model.tiny import write_tiny_llama

ROOT = Path(__file__).resolve().parent.parent
WIDTHS = (60, 120)
# Lines of the end of a training.
ROWS = 24
CODE = re.compile(r"\x1b\[([0-9;?]*)([a-zA-Z])|\x1b\][^\x07]*\x07|\x1b[()][A-Z0-9]")
# What differs from machine to machine and says nothing.
NOISE = re.compile(r"real_accelerator|^\[W|NNPACK|socket\.cpp")


@dataclass(frozen=True)
class Scene:
    """A command and when to look.

    Attributes
    ----------
    title : str
    words : list of str
        Of the command line, behind ``llmcls``.
    look_at : str, optional
        The screen is also shown when this is first on it.
    press : str, optional
        Ctrl-C is pressed when this is on the screen.
    text : str
        What one sees.
    """

    title: str
    words: list[str]
    text: str
    look_at: str | None = None
    press: str | None = None


SCENES = (
    Scene(
        "A training",
        ["train", "recipe.yaml"],
        "The bar stands below the log lines and is gone at the end; the verdict is the last thing on the screen.",
        look_at="step 14/",
    ),
    Scene(
        "A mistake",
        ["train", "recipe.yaml", "data.text_fields=[titel]", "exp.run_name=mistake"],
        "The sentence is the last line, and the exit code is 2. Nothing of the launcher stands below it.",
    ),
    Scene(
        "Ctrl-C",
        ["train", "recipe.yaml", "exp.run_name=stopped"],
        "The step ends, its checkpoint is written, and the last line says what was saved. The exit code is 130.",
        press=" elapsed",
    ),
)


@dataclass
class Screen:
    """The lines of a terminal, and its cursor. Understands what rich and tqdm write."""

    columns: int
    lines: list[str] = field(default_factory=lambda: [""])
    row: int = 0
    column: int = 0

    def feed(self, text: str) -> None:
        """Write text with control codes."""
        at = 0
        for code in CODE.finditer(text):
            self._plain(text[at : code.start()])
            self._control(code[1] or "", code[2] or "")
            at = code.end()
        self._plain(text[at:])

    def shown(self) -> str:
        """The lines without trailing blanks."""
        kept = [line.rstrip() for line in self.lines if not NOISE.search(line)]
        return "\n".join(kept).strip("\n")

    def _plain(self, text: str) -> None:
        for letter in text:
            if letter == "\r":
                self.column = 0
            elif letter == "\n":
                self._down()
            elif letter >= " ":
                if self.column == self.columns:
                    self.column = 0
                    self._down()
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + letter + line[self.column + 1 :]
                self.column += 1

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append("")

    def _control(self, numbers: str, kind: str) -> None:
        count = int(numbers) if numbers.isdigit() else 1
        if kind == "A":
            self.row = max(0, self.row - count)
        elif kind == "K":
            self.lines[self.row] = "" if numbers == "2" else self.lines[self.row][: self.column]
        elif kind == "J":
            self.lines[self.row] = self.lines[self.row][: self.column]
            del self.lines[self.row + 1 :]


def capture(scene: Scene, columns: int, folder: Path) -> tuple[str | None, str, int]:
    """Run a scene.

    Returns
    -------
    The screen at ``look_at``, the screen at the end, and the exit code.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    variables = os.environ | {
        "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": str(columns), "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hub"), "TQDM_DISABLE": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "llmcls", *scene.words]
    process = subprocess.Popen(
        command, cwd=folder, env=variables, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(slave)
    screen, middle, pressed, waiting = Screen(columns), None, False, b""
    while True:
        ready, _, _ = select.select([master], [], [], 1.0)
        if ready:
            try:
                data = os.read(master, 65536)
            except OSError:
                break
            if not data:
                break
            waiting += data
            text = waiting.decode("utf-8", "ignore")
            screen.feed(text)
            waiting = b""
        shown = screen.shown()
        if scene.look_at and middle is None and scene.look_at in shown:
            middle = shown
        if scene.press and not pressed and scene.press in shown:
            pressed = True
            # Not in the middle of the keys that a person would see.
            time.sleep(0.1)
            os.write(master, b"\x03")
    os.close(master)
    return middle, screen.shown(), process.wait()


def prepare(folder: Path) -> None:
    """Write a tiny model, data, a recipe and the profiles."""
    write_tiny_llama(folder / "tiny-llama", make_corpus(300, seed=0), seed=0, steps=3)
    write_data(folder, 7, {"train": 320, "validation": 80, "test": 80})
    (folder / "accel_configs").symlink_to(ROOT / "accel_configs")
    recipe = {
        "data": {
            "dataset_name": "products", "id_column": "uid", "text_fields": ["title", "description"], "max_length": 64,
            "train_csv": "train.csv", "val_csv": "validation.csv", "test_csv": "test.csv",
            "label_columns": list(TOPICS),
        },
        "model": {"model_name": "tiny-llama", "torch_dtype": "float32", "lora_r": 8},
        "train": {
            "batch_size": 16, "gradient_accumulation_steps": 1, "num_train_epochs": 1, "learning_rate": 2e-3,
            "logging_steps": 5, "eval_steps": 10, "report_to": [],
        },
        "exp": {"seeds": [1]},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")


def write_page(folder: Path, out: Path) -> None:
    """Write the page with every scene at every width, as far as they are captured."""
    parts = [
        "# In the terminal\n",
        "What `llmcls train` shows on a terminal of 60 and of 120 columns. `python docs/make_terminal_captures.py`\n"
        "writes this page: each screen is that of a real process, with a tiny model on a CPU.\n",
    ]
    material = list(folder.iterdir())
    for scene in SCENES:
        parts.append(f"## {scene.title}\n\n{scene.text}\n")
        typed = "$ llmcls " + " ".join(scene.words)
        for columns in WIDTHS:
            own = folder / f"{columns}"
            own.mkdir(exist_ok=True)
            for path in material:
                if not (own / path.name).exists():
                    (own / path.name).symlink_to(path)
            middle, end, code = capture(scene, columns, own)
            print(f"{scene.title}, {columns} columns: exit code {code}", flush=True)
            parts.append(f"### {scene.title}, {columns} columns\n")
            if middle is not None:
                parts.append(f"While it runs:\n\n```text\n{typed}\n{middle}\n```\n\nThe last lines at its end:\n")
                end = "\n".join(end.splitlines()[-ROWS:])
            else:
                end = f"{typed}\n{end}"
            parts.append(f"```text\n{end}\n```\n")
            out.write_text("\n".join(parts), encoding="utf-8")


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "terminal.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        write_page(Path(folder), arguments.out)


if __name__ == "__main__":
    main()
