"""``python -m llmcls COMMAND ...`` is ``llmcls COMMAND ...``."""

from __future__ import annotations

from llmcls.cli import app

if __name__ == "__main__":
    app(prog_name="llmcls")
