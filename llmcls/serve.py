"""Serve trained runs over HTTP: ``python -m llmcls.serve --run outputs/.../run_0``.

``POST /classify`` with ``{"texts": ["..."]}`` returns labels and probabilities. Texts of many clients are scored
together. The page ``/docs`` describes the interface.
"""

from __future__ import annotations

import gc
import logging
import os
from dataclasses import replace
from pathlib import Path

from llmcls.common.command import begin_imports, command_parser, run_command

if __name__ == "__main__":
    # The imports below take seconds.
    begin_imports()

from llmcls.common.logs import configure_logging
from llmcls.common.optional import OptionalImport
from llmcls.common.secrets import keep_secret
from llmcls.common.user_error import UserError
from llmcls.results.finished_runs import open_run
from llmcls.results.run_folder import RunFolder
from llmcls.serving.loaded import load_runs

SERVING = OptionalImport("serving", "serve")
with SERVING:
    from llmcls.serving.app import make_app
    from llmcls.serving.guard import Limits
    from llmcls.serving.metrics import Metrics
    from llmcls.serving.server import Server, open_socket
    from llmcls.serving.service import Service

log = logging.getLogger("llmcls.serve")

KEY = "LLMCLS_API_KEY"
SHORTEST_KEY = 16


def main(argv: list[str] | None = None) -> None:
    """Load the runs, and serve until a signal stops the process."""
    SERVING.require()
    defaults = Limits()
    parser = command_parser("serve", "Serve trained runs over HTTP.")
    parser.add_argument("--run", nargs="+", required=True, help="run folders, outputs/.../run_0")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on; 0.0.0.0 for all")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one, which is logged")
    parser.add_argument(
        "--api-key-file",
        help=f"a file with the key that requests must have; default: the variable {KEY}, or none",
    )
    parser.add_argument("--max-texts", type=int, default=defaults.max_texts, help="texts of a request")
    parser.add_argument("--max-chars", type=int, default=defaults.max_chars, help="characters of a text")
    parser.add_argument("--max-bytes", type=int, default=defaults.max_bytes, help="bytes of a request")
    parser.add_argument("--max-waiting", type=int, default=defaults.max_waiting, help="texts that may wait, in all")
    parser.add_argument("--batch-tokens", type=int, help="tokens of a forward pass; default: by run and device")
    parser.add_argument(
        "--drain-seconds", type=float, default=20.0, help="for how long waiting texts are classified at the end"
    )
    parser.add_argument("--base-model", help="where the pretrained model is now, if it moved since training")
    arguments = parser.parse_args(argv)
    for name in ("max_texts", "max_chars", "max_bytes", "max_waiting", "batch_tokens"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}; it must be 1 or more")
    configure_logging(main_process=True)
    key = read_key(arguments.api_key_file)
    folders = [RunFolder(Path(folder)) for folder in arguments.run]
    names = run_names(folders)
    runs = [open_run(folder, arguments.base_model) for folder in folders]
    socket = open_socket(arguments.host, arguments.port)
    loaded = load_runs(runs)
    limits = replace(
        defaults, max_texts=arguments.max_texts, max_chars=arguments.max_chars, max_bytes=arguments.max_bytes,
        max_waiting=max(arguments.max_waiting, arguments.max_texts),
    )  # fmt: skip
    service = Service(dict(zip(names, loaded, strict=True)), Metrics(), limits.max_waiting, arguments.batch_tokens)
    host, port = socket.getsockname()[:2]
    if key is None and host not in ("127.0.0.1", "::1"):
        log.warning("every program that reaches %s can use this server: it has no --api-key-file", host)
    # What is loaded stays: without this, looking for garbage in it stops the server for some tenths of a second now and
    # then.
    gc.collect()
    gc.freeze()
    ready = f"serving {', '.join(names)} on http://{host}:{port}, interface at /docs"
    try:
        Server(make_app(service, limits, key), service, arguments.drain_seconds, ready).run([socket])
    finally:
        service.close()
    log.info("stopped")


def read_key(path: str | None) -> str | None:
    """The key that requests must have, from a file or the environment; None if there is none.

    Raises
    ------
    UserError
        If it cannot be read, is short, or has characters that no header has. The message does not show it.
    """
    try:
        key = os.environ.get(KEY) if path is None else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--api-key-file: {path} cannot be read: {type(error).__name__}") from None
    where = KEY if path is None else path
    if key is None:
        return None
    key = key.strip()
    keep_secret(key)
    if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"the key in {where} must be at least {SHORTEST_KEY} ASCII characters without a space")
    return key


def run_names(folders: list[RunFolder]) -> list[str]:
    """Names for runs: the last parts of their paths, as few as tell them apart.

    Raises
    ------
    UserError
        If a run is named twice.
    """
    parts = [folder.path.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError("--run names a folder twice; name each run once")


if __name__ == "__main__":
    run_command(main)
