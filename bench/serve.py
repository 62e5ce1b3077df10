"""Race `llmcls serve` under many clients against one request at a time.

    BANKING77_DIR=... REUTERS_DIR=... REUTERS_MODEL=... python bench/serve.py [--seconds 120] [--rounds 3]

Real texts of mixed length, articles and messages, one per request, over HTTP on one machine, which also runs the
clients. Without the variables, texts are generated. Taking turns:

- `llmcls serve` with all clients;
- the same server with one client, which asks for the next text when it has its answer;
- FastAPI around a pipeline of transformers with the exported run (bench/plain_server.py), with all clients.

Every answer is compared with what the run predicts. `predict` on the same texts shows what HTTP costs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from bench.material import (  # noqa: E402
    Material,
    machine,
    median_ratio,
    prepare,
    prepare_messages,
    write_section,
)


@dataclass
class Load:
    """What clients measured in one round.

    Attributes
    ----------
    seconds : float
    latencies : list of float
        Seconds from the request to its whole answer.
    answers : list
        Row, status and body of each answer, until `require_right` has compared them.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    answers: list[tuple[int, bytes, bytes]] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.latencies) / self.seconds


def bodies(texts: list[str]) -> list[bytes]:
    """The requests of texts, one text each, as they go over the socket."""
    found = []
    for text in texts:
        body = json.dumps({"texts": [text]}).encode()
        head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        found.append(head % len(body) + body)
    return found


async def client(port: int, requests: list[bytes], first: int, until: float, load: Load) -> None:
    """Ask for one text after the other on one connection; little more than a socket, to leave the server the cores."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    row = first
    while time.perf_counter() < until:
        row = (row + 7919) % len(requests)
        start = time.perf_counter()
        writer.write(requests[row])
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        answer = await reader.readexactly(int(length[1]) if length else 0)
        load.latencies.append(time.perf_counter() - start)
        load.answers.append((row, head[9:12], answer))
    writer.close()


async def press(port: int, requests: list[bytes], clients: int, seconds: float) -> Load:
    """Let clients ask for some seconds."""
    load, start = Load(), time.perf_counter()
    work = [client(port, requests, i * 104_729, start + seconds, load) for i in range(clients)]
    await asyncio.gather(*work)
    load.seconds = time.perf_counter() - start
    return load


def require_right(load: Load, expected: np.ndarray) -> None:
    """Compare every answer with what is expected, after the race, and forget the answers."""
    for row, status, answer in load.answers:
        assert status == b"200", answer[:200].decode()
        found = json.loads(answer)["results"][0]["probabilities"]
        difference = np.abs(np.array(sorted(found.values())) - expected[row]).max()
        assert difference <= 1e-4, f"row {row} differs by {difference:.1e}"
    load.answers.clear()


def ask(port: int, path: str) -> str:
    """The answer to a GET request."""
    from urllib.request import urlopen

    with urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return str(answer.read().decode())


@contextmanager
def server(*command: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server process that is ready; stopped at the end."""
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT)
    try:
        for _ in range(600):
            time.sleep(0.5)
            if process.poll() is not None:
                raise RuntimeError(f"{command} ended with {process.returncode}")
            try:
                ask(port, "/health")
                break
            except OSError:
                continue
        yield process
    finally:
        process.terminate()
        process.wait(120)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as opened:
        return int(opened.getsockname()[1])


def memory(port: int) -> float:
    """Resident memory of an llmcls server in MiB, as its metrics say."""
    found = re.search(r"^process_resident_memory_bytes (\S+)", ask(port, "/metrics"), re.MULTILINE)
    return float(found[1]) / 2**20 if found else float("nan")


def passes(port: int) -> float:
    """Forward passes that an llmcls server has made."""
    found = re.search(r"^llmcls_passes_total\S* (\S+)", ask(port, "/metrics"), re.MULTILINE)
    return float(found[1]) if found else 0.0


@dataclass
class Subject:
    """What is served: a trained run, texts, their sorted probabilities, and how many texts/s `predict` has."""

    run: Path
    texts: list[str]
    expected: np.ndarray
    predicted: float


def prepared(folder: Path, material: Material) -> Subject:
    """Train briefly, and export the run to the folder "exported" for the competitor."""
    from llmcls.data.encoding import whole_texts
    from llmcls.data.tables import read_table
    from llmcls.engine.accelerator import open_accelerator
    from llmcls.results.finished_runs import open_run
    from llmcls.results.run_folder import ExperimentFolder
    from llmcls.serving.export import ExportOptions, write_export
    from llmcls.serving.loaded import load_runs
    from llmcls.train import train_seeds

    recipe = material.recipe("num_train_epochs=1", "test_csv=", f"exp.output_root={folder / 'outputs'}")
    train_seeds(recipe, open_accelerator(recipe))
    run = open_run(ExperimentFolder.of(recipe).run(0))
    (folder / "exported").mkdir()
    write_export(run, folder / "exported", ExportOptions())
    texts = whole_texts(read_table(material.test, "test"), recipe.data)
    loaded = load_runs([run])[0]
    loaded.probabilities(loaded.tokens(texts[:50]))
    start = time.perf_counter()
    found = loaded.probabilities(loaded.tokens(texts))
    return Subject(run.folder.path, texts, np.sort(found, axis=1), len(texts) / (time.perf_counter() - start))


def race(folder: Path, material: Material, a: argparse.Namespace) -> list[str]:
    """Let all contestants answer questions about one set of texts, in turns; the lines of its table."""
    contestants = {
        "llmcls serve": a.clients,
        "llmcls serve, one client": 1,
        "pipeline, one request at a time": a.clients,
    }
    loads: dict[str, list[Load]] = {name: [] for name in contestants}
    held: list[float] = []
    subject = prepared(folder, material)
    ours, plain = free_port(), free_port()
    with (
        server("-m", "llmcls.serve", "--run", str(subject.run), "--port", str(ours), port=ours),
        server("bench/plain_server.py", str(folder / "exported"), str(plain), port=plain),
    ):
        requests = bodies(subject.texts)
        for port in (ours, plain):
            asyncio.run(press(port, requests, a.clients, 3))
        held.append(memory(ours))
        before = passes(ours)
        made = 0.0
        for number in range(a.rounds):
            for contestant, clients in contestants.items():
                port = plain if contestant.startswith("pipeline") else ours
                load = asyncio.run(press(port, requests, clients, a.seconds / a.rounds))
                loads[contestant].append(load)
                if contestant == "llmcls serve":
                    made += passes(ours) - before
                    held.append(memory(ours))
                before = passes(ours)
                print(f"{material.name} round {number + 1}  {contestant:32} {load.rate:8.1f} requests/s", flush=True)
                require_right(load, subject.expected)
    answered = sum(len(load.latencies) for load in loads["llmcls serve"])
    words = np.percentile([len(text.split()) for text in subject.texts], [5, 50, 95])
    return [
        "",
        f"{material.name}; 5 %, 50 % and 95 % of the texts have up to {', '.join(f'{w:.0f}' for w in words)} words:",
        "",
        *table(a, loads),
        "",
        f"All answers were right. {answered / made:.1f} texts per forward pass under {a.clients} clients.",
        f"`predict` has {subject.predicted:.0f} texts/s. Memory of the server, before the first round and after each: "
        f"{', '.join(f'{m:.0f}' for m in held)} MiB.",
    ]


def main() -> None:
    """Race with each set of texts, print the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=120, help="for each contestant, in all rounds together")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1000, help="different texts")
    parser.add_argument("--no-write", action="store_true", help="leave bench/results.md as it is")
    a = parser.parse_args()
    logging.disable(logging.INFO)
    lines = [
        f"{machine()}. One text per request, max_length 512, clients on the same machine, {a.seconds:.0f} s for each "
        f"contestant in {a.rounds} rounds, taking turns; speedups are medians over rounds, latencies are those of all "
        "rounds."
    ]
    with tempfile.TemporaryDirectory() as name:
        articles = prepare(Path(name, "articles"), 1024, a.rows)
        messages = prepare_messages(Path(name, "messages"), 1024, a.rows)
        for material in (articles, messages):
            if material is not None:
                lines += race(material.train.parent, material, a)
    if not a.no_write:
        write_section("Serving", lines)
    print("\n".join(lines))


def table(a: argparse.Namespace, loads: dict[str, list[Load]]) -> list[str]:
    """A row for each contestant."""
    lines = [
        "| | clients | requests/s in each round | speedup of llmcls | 50 %, 95 %, 99 % of answers within ms |",
        "|---|---|---|---|---|",
    ]
    ours = [load.rate for load in loads["llmcls serve"]]
    for contestant, found in loads.items():
        rates = [load.rate for load in found]
        ratio = "" if contestant == "llmcls serve" else f"{median_ratio(ours, rates):.2f}"
        all_ms = 1000 * np.concatenate([load.latencies for load in found])
        shown = ", ".join(f"{value:.0f}" for value in np.percentile(all_ms, [50, 95, 99]))
        clients = 1 if contestant.endswith("one client") else a.clients
        lines.append(f"| {contestant} | {clients} | {', '.join(f'{r:.1f}' for r in rates)} | {ratio} | {shown} |")
    return lines


if __name__ == "__main__":
    main()
