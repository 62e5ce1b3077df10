"""Kills and signals at random moments and at enumerated file operations, until the time is over.

    python -m tests.faults.soak --minutes 60

Each work (a training on one process, one on two for each engine under torch's launcher, a prediction) is done once
without trouble. Then it is done again and again in a new folder, hit until it ends, and compared: weights, decisions,
metrics, log lines and predictions must be equal byte for byte, and no file may be left over.

The libraries are imported once, also those that a work imports late, and every process is a fork, so that a kill costs
little. A part of the hits goes to the real `accelerate launch`, whose processes import everything themselves.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

import llmcls.predict
import llmcls.train
from llmcls.common import signals
from llmcls.common.command import run_command
from llmcls.common.signals import EXIT_INTERRUPTED
from llmcls.datasets.products import make_corpus, write_data
from llmcls.engine.accelerator import REHEARSAL
from llmcls.evaluation import scoring
from llmcls.model.tiny import write_tiny_llama
from llmcls.prediction import resumable_predictions
from llmcls.rehearsal.cpu_stand_in import stand_in_for_gpus
from llmcls.results import predictions
from llmcls.training import interval, timed_checkpoints
from tests.conftest import small_recipe
from tests.faults.kills import count_operations, kill_this_process_at
from tests.helpers import MEASURED, ROOT

SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
# A process that takes longer to end hangs. Ranks notice within a second that their launcher is gone. On a machine that
# others use as well, it is so many times what the work takes without trouble.
SECONDS_TO_END, TIMES_TO_END = 60.0, 3.0
TIMES = (*MEASURED, "seconds", "training")


@dataclass(frozen=True)
class Work:
    """Something that is done and hit.

    Attributes
    ----------
    name : str
    ranks : int
        0 for a process without a launcher.
    predicts : bool
    profile : str
        Of `accel_configs`, for an engine on CPU processes, as in a rehearsal.
    launched : bool
        Whether the real `accelerate launch` starts it; it is hit once, because each start takes many seconds.
    """

    name: str
    ranks: int = 0
    predicts: bool = False
    profile: str = ""
    launched: bool = False


WORKS = (
    Work("training, one process"),
    Work("training, DDP", 2),
    Work("prediction", 0, True),
    Work("training, FSDP2", 2, profile="fsdp"),
    Work("training, ZeRO-2", 2, profile="zero2"),
    Work("accelerate launch", 2, launched=True),
)
HITS = 6


@dataclass
class Tally:
    """What was seen, by work and kind of hit."""

    hits: Counter[tuple[str, str]] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    hangs: int = 0
    orphans: int = 0

    def table(self) -> str:
        """A Markdown table of the hits, and a line of what they did."""
        kinds = sorted({kind for _, kind in self.hits})
        lines = ["| hit | " + " | ".join(work.name for work in WORKS) + " |", "|---|" + "---:|" * len(WORKS)]
        for kind in kinds:
            lines.append(f"| {kind} | " + " | ".join(str(self.hits[work.name, kind]) for work in WORKS) + " |")
        total = sum(self.hits.values())
        done = ", ".join(f"{count} x {name}" for name, count in sorted(self.ends.items()))
        seen = f"{len(self.problems)} problems, of them {self.hangs} hangs and {self.orphans} orphans"
        lines += ["", f"{total} hits; completed and compared: {done}; {seen}"]
        return "\n".join(lines)


class Soak:
    """Folders and references of a soak.

    Parameters
    ----------
    root : Path
        Empty.
    seed : int
    by_time : float
        Share of the hits that come at a random moment, with a random signal; the others at a file operation.
    """

    def __init__(self, root: Path, seed: int, by_time: float = 0.6) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.by_time = by_time
        self.root, self.random, self.tally = root, random.Random(seed), Tally()
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(root / "cache"), "OMP_NUM_THREADS": "1"}
        sys.modules["datasets"].config.HF_DATASETS_CACHE = root / "cache"
        _forked(self._prepare, root / "prepare.txt")
        self._reference: dict[str, dict[str, Any]] = {}
        self._operations: dict[str, int] = {}
        self._seconds: dict[str, float] = {}

    def _prepare(self) -> None:
        model, data = self.root / "tiny", self.root / "data"
        write_tiny_llama(model, make_corpus(100, seed=0), seed=0, steps=2)
        write_data(data, 7, {"train": 96, "validation": 40, "test": 61})
        values = small_recipe(model, data, self.root / "outputs")
        values["train"] |= {
            "num_train_epochs": 2, "eval_steps": 4, "logging_steps": 3, "save_minutes": 1e-4, "save_total_limit": 3,
            "thresholds": "global", "train_metrics_rows": 0,
        }  # fmt: skip
        (self.root / "recipe.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")

    def folder(self, work: Work, name: str) -> Path:
        """What a work writes to."""
        kind = f"{work.ranks}-{int(work.predicts)}{work.profile}{'-launched' if work.launched else ''}"
        return self.root / "outputs" / "tiny" / "products" / f"{name}-{kind}"

    def start(self, work: Work, name: str, operation: int | None = None) -> int:
        """Start a work in a session of its own; returns its process number."""
        folder = self.folder(work, name)
        if work.predicts:
            run = self.folder(WORKS[0], "reference") / "run_0"
            arguments = ["--run", str(run), "--input", str(self.root / "data" / "test.csv")]
            arguments += ["--output", str(folder / "out.jsonl")]
            main: Callable[[list[str]], None] = llmcls.predict.main
        else:
            arguments, main = [str(self.root / "recipe.yaml"), f"exp.run_name={folder.name}"], llmcls.train.main

        def alone() -> None:
            become_a_command()
            if operation is not None:
                kill_this_process_at(operation)
            count_operations(self.root / f"{folder.name}.operations")
            note_modules(self.root / f"{folder.name}.modules")
            run_command(lambda: main(arguments))

        def rank() -> None:
            # The launcher asks the system to interrupt its forks when it ends; `accelerate launch` starts programs.
            ctypes.CDLL(None).prctl(1, 0)
            if operation is not None and os.environ["RANK"] == str(operation % work.ranks):
                kill_this_process_at(operation)
            become_a_command()
            note_modules(self.root / f"{folder.name}.modules")
            if work.profile:
                stand_in_for_gpus()
            run_command(lambda: main(arguments))

        log = self.root / f"{folder.name}.txt"
        if work.launched:
            return fork(lambda: _become_the_launcher(work, arguments), log)
        return fork((lambda: _launch(rank, work)) if work.ranks else alone, log)

    def reference(self, work: Work) -> None:
        """Do a work without trouble, and note the result, the file operations and the time."""
        if work.name in self._reference:
            return
        if work.predicts:
            self.reference(WORKS[0])
        started = time.monotonic()
        code = code_of(self.start(work, "reference"))
        if code:
            raise RuntimeError((self.root / f"{self.folder(work, 'reference').name}.txt").read_text(encoding="utf-8"))
        self._seconds[work.name] = time.monotonic() - started
        import_all(self.root / f"{self.folder(work, 'reference').name}.modules")
        counted = self.root / f"{self.folder(work, 'reference').name}.operations"
        self._operations[work.name] = int(counted.read_text()) if counted.exists() else 300
        self._reference[work.name] = result_of(self.folder(work, "reference"))

    def once(self, work: Work, number: int, hits: int, most: float = 1e9) -> None:
        """Do a work, hit it a number of times, let it end, and compare."""
        self.reference(work)
        name = f"hit{number}"
        for _ in range(hits):
            if time.monotonic() > most or self._hit(work, name):
                break
        code = self._end(self.start(work, name), work, name)
        if code != 0:
            self._problem(work, name, f"exit code {code} without a hit")
            return
        found, expected = result_of(self.folder(work, name)), self._reference[work.name]
        differing = sorted(k for k in found.keys() | expected.keys() if found.get(k) != expected.get(k))
        if differing:
            self._problem(work, name, f"differs or is stray: {differing}")
        else:
            self.tally.ends[work.name] += 1
            shutil.rmtree(self.folder(work, name))

    def _hit(self, work: Work, name: str) -> bool:
        """Start a work and hit it; whether it ended before."""
        chosen = self.random.choice(SIGNALS)
        target = self.random.choice(["launcher", "rank"]) if work.ranks else "process"
        if not work.launched and self.random.random() >= self.by_time:
            operation = self.random.randrange(self._operations[work.name])
            process, kind = self.start(work, name, operation), "SIGKILL at a file operation"
            code = self._end(process, work, name)
            ended = code == 0
        else:
            process, kind = self.start(work, name), f"{chosen.name} to the {target}"
            delay = self.random.uniform(0.05, 1.1) * self._seconds[work.name]
            ended = _wait_for_end(process, delay)
            members = _session(process)
            if not ended:
                for hit in _targets(process, target, self.random):
                    os.kill(hit, chosen)
            code = self._end(process, work, name, members)
        if not ended:
            self.tally.hits[work.name, kind] += 1
            allowed = {0, 1, EXIT_INTERRUPTED, 130, *(-s for s in SIGNALS)} if work.ranks else {
                0, EXIT_INTERRUPTED, 130, *(-s for s in SIGNALS)
            }  # fmt: skip
            if code not in allowed or ("Traceback" in self._log_of(work, name) and not work.ranks):
                self._problem(work, name, f"exit code {code} or a traceback after {kind}")
        return ended

    def _log_of(self, work: Work, name: str) -> str:
        return (self.root / f"{self.folder(work, name).name}.txt").read_text(encoding="utf-8", errors="replace")

    def _problem(self, work: Work, name: str, what: str) -> None:
        kept = self.root / "problems"
        kept.mkdir(exist_ok=True)
        log = kept / f"{len(self.tally.problems)}.txt"
        log.write_text(self._log_of(work, name), encoding="utf-8")
        self.tally.problems.append(f"{work.name}, {name}: {what} (log: {log})")
        print(self.tally.problems[-1], flush=True)

    def _end(self, process: int, work: Work, name: str, known: Sequence[int] = ()) -> int:
        """Wait until a process and all that it started have ended; counts hangs and orphans."""
        members = {*known, *_session(process)}
        patience = max(SECONDS_TO_END, TIMES_TO_END * self._seconds.get(work.name, 0.0))
        if not _wait_for_end(process, patience):
            self.tally.hangs += 1
            self._problem(work, name, "hangs")
            for one in {*_session(process), process}:
                os.kill(one, signal.SIGKILL)
        code = code_of(process)
        deadline = time.monotonic() + patience
        while (left := [p for p in {*members, *_session(process)} if _alive(p)]) and time.monotonic() < deadline:
            time.sleep(0.05)
        if left:
            self.tally.orphans += len(left)
            self._problem(work, name, f"orphans {left}")
            for one in left:
                os.kill(one, signal.SIGKILL)
        return code


def result_of(folder: Path) -> dict[str, Any]:
    """All that must be equal: the content of each file by its name; numbers of time are left out."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or name == ".lock":
            continue
        content = path.read_bytes()
        if path.name in ("metrics.json", "progress.json"):
            found[name] = _timeless(json.loads(content))
        elif path.name == "metrics.jsonl":
            found[name] = [_timeless(json.loads(line)) for line in content.splitlines()]
        elif path.name in ("log.txt", "environment.json", "report.html", "README.md", "recipe.yaml") or any(
            part in name for part in ("manifest.json", "summary.", "optimizer.pt")
        ):
            # They name times, or the folder, or are compared by their content elsewhere.
            found[name] = "is there"
        else:
            found[name] = content
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in TIMES}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def become_a_command() -> None:
    """Make a fork what a new process of `llmcls` is, with small chunks and frequent checkpoints."""
    signals._PARENT = os.getppid()
    for module in (scoring, predictions, resumable_predictions):
        module.CHUNK_ROWS = 8  # type: ignore[attr-defined]
    interval.SECONDS_BETWEEN_SIGNALS = 0.02
    timed_checkpoints.LARGEST_SHARE = 1e9


def _launch(rank: Callable[[], None], work: Work) -> None:
    """What `accelerate launch` does: torch's launcher, here with forks."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    profile = ["--config_file", str(ROOT / "accel_configs" / f"{work.profile or 'cpu'}.yaml")]
    parsed = launch_command_parser().parse_args([*profile, "--num_processes", str(work.ranks), "train.py"])
    parsed, defaults, _ = _validate_launch_command(parsed)
    # As `accelerate launch` does next.
    parsed.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config or [])
    by_deepspeed = parsed.use_deepspeed
    os.environ |= prepare_deepspeed_cmd_env(parsed)[1] if by_deepspeed else prepare_multi_gpu_env(parsed)
    if work.profile:
        os.environ[REHEARSAL] = "1"
    config = LaunchConfig(
        1, 1, work.ranks, rdzv_backend="c10d", rdzv_endpoint="localhost:0", run_id=str(os.getpid()), max_restarts=0,
        start_method="fork",
    )  # fmt: skip
    elastic_launch(config, rank)()


def _become_the_launcher(work: Work, arguments: list[str]) -> None:
    """Replace a fork by the real launcher; `_session` finds the ranks that it starts."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accel_configs/cpu.yaml"]
    command += ["--num_processes", str(work.ranks), "--main_process_port", "0", "-m", "llmcls.train", *arguments]
    os.chdir(ROOT)
    os.execve(sys.executable, command, os.environ | {"PYTHONPATH": str(ROOT)})


def note_modules(path: Path) -> None:
    """Write at the end of this process which modules it has imported."""
    atexit.register(lambda: path.write_text("\n".join(sorted(sys.modules)), encoding="utf-8"))


def import_all(path: Path) -> None:
    """Import what another process has noted: each fork would otherwise read it again."""
    names = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for name in names:
        if name not in sys.modules:
            # Some names are made up by libraries.
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def _ended_with(work: Callable[[], None]) -> None:
    """Do what a process does at its end, and end it."""
    code = 1
    try:
        work()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def fork(work: Callable[[], None], log: Path) -> int:
    """Do a work in a fork with a session of its own; returns its process number."""
    sys.stdout.flush()
    # Else each fork copies all objects as soon as it looks for garbage.
    gc.freeze()
    child = os.fork()
    if child:
        return child
    os.setsid()
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(handle, number)
    atexit._clear()
    _ended_with(work)
    raise AssertionError("it has ended")


def _forked(work: Callable[[], None], log: Path) -> None:
    if code_of(fork(work, log)):
        raise RuntimeError(log.read_text(encoding="utf-8"))


_codes: dict[int, int] = {}


def _wait_for_end(process: int, seconds: float) -> bool:
    """Whether a child ends within so many seconds."""
    deadline = time.monotonic() + seconds
    while process not in _codes:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            _codes[process] = os.waitstatus_to_exitcode(status)
        elif time.monotonic() > deadline:
            return False
        else:
            time.sleep(0.01)
    return True


def code_of(process: int) -> int:
    _wait_for_end(process, 1e9)
    return _codes[process]


def _session(process: int) -> list[int]:
    """The processes of the session that a child leads, and those that it started in sessions of their own."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        found += [p.pid for p in psutil.Process(process).children(recursive=True) if os.getsid(p.pid) != process]
    for one in psutil.pids():
        try:
            if os.getsid(one) == process and _alive(one):
                found.append(one)
        except (ProcessLookupError, PermissionError):
            continue
    return found


def _alive(process: int) -> bool:
    try:
        return bool(psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _targets(process: int, target: str, rng: random.Random) -> list[int]:
    """Whom a signal is sent to: the child, or one of the ranks that it started."""
    if target != "rank":
        return [process]
    ranks = [p for p in _session(process) if p != process]
    return [rng.choice(ranks)] if ranks else [process]


def speed(hits: int, seconds: float) -> str:
    """How quick a soak was, also on a machine whose processors others used as well."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    busy = sum(of.ru_utime + of.ru_stime for of in used)
    return (
        f"{60 * hits / seconds:.1f} hits a minute; {busy:.0f} s of processor time in {seconds:.0f} s, so "
        f"{60 * hits / busy:.1f} hits in a minute of one core"
    )


def main() -> None:
    """Soak for some minutes, and print the table."""
    parser = argparse.ArgumentParser(description="Kills and signals at random moments; all results must be the same.")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", help="parts of the names of the works to hit (default: all)")
    parser.add_argument("--folder", help="where to work; it is kept (default: a temporary one, kept after a problem)")
    arguments = parser.parse_args()
    root = Path(arguments.folder or tempfile.mkdtemp(prefix="llmcls-soak-"))
    works = [work for work in WORKS if not arguments.only or any(part in work.name for part in arguments.only)]
    if any("zero" in work.profile for work in works):
        # Once for all forks; it takes seconds.
        os.environ["DS_ACCELERATOR"] = "cpu"
        importlib.import_module("deepspeed")
    started = time.monotonic()
    soak, deadline, number = Soak(root, arguments.seed), started + 60 * arguments.minutes, 0
    while time.monotonic() < deadline:
        work = works[number % len(works)]
        soak.once(work, number, hits=1 if work.launched else HITS, most=deadline)
        number += 1
    print(soak.tally.table())
    print(speed(sum(soak.tally.hits.values()), time.monotonic() - started))
    if soak.tally.problems:
        sys.exit(f"see {root}")
    if not arguments.folder:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
