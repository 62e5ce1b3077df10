"""What the doctor shows and writes: a line per check, the verdict, and doctor.json."""

from __future__ import annotations

import getpass
import os
import platform
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llmcls import __version__
from llmcls.diagnosis.checks import Check
from llmcls.diagnosis.findings import Finding, Subject
from llmcls.recipe.load import recipe_to_dict

# Environment variables that change how training runs, and contain no secret.
VARIABLES = (
    "ACCELERATE_MIXED_PRECISION", "CC", "CUDA_DEVICE_ORDER", "CUDA_HOME", "CUDA_LAUNCH_BLOCKING",
    "CUDA_VISIBLE_DEVICES", "CXX", "GLOO_SOCKET_IFNAME", "HF_HUB_OFFLINE", "LD_LIBRARY_PATH",
    "LOCAL_WORLD_SIZE", "MKL_NUM_THREADS", "NCCL_DEBUG", "NCCL_IB_DISABLE", "NCCL_SOCKET_IFNAME",
    "NVIDIA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "RANK",
    "SLURM_CPUS_PER_TASK", "SLURM_GPUS", "SLURM_JOB_NUM_NODES", "SLURM_NTASKS", "TORCHINDUCTOR_CACHE_DIR",
    "TORCH_COMPILE_DISABLE", "TORCH_LOGS", "TRANSFORMERS_OFFLINE", "TRITON_CACHE_DIR", "WORLD_SIZE",
)  # fmt: skip
COLOURS = {"ok": "green", "warning": "yellow", "fault": "bold red", "skipped": "dim"}


@dataclass(frozen=True)
class Result:
    """A check, what it found, and the seconds it took."""

    check: Check
    finding: Finding
    seconds: float


def show(results: Iterable[tuple[Check, Finding, float]], console: Console) -> list[Result]:
    """Show each result as soon as it is there: as a table on a terminal, else as plain lines.

    Parameters
    ----------
    results : iterable of (Check, Finding, float)
        See `llmcls.diagnosis.isolation.run_isolated`.
    console : rich.console.Console

    Returns
    -------
    list of Result
    """
    done: list[Result] = []
    if not console.is_terminal:
        for check, finding, seconds in results:
            done.append(Result(check, finding, seconds))
            print("\n".join(plain_lines(done[-1])), file=console.file, flush=True)
        return done
    table = Table(box=None, padding=(0, 1, 0, 0), show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    with console.status("starting") as status:
        for check, finding, seconds in results:
            done.append(Result(check, finding, seconds))
            status.update(f"{len(done)} checks done")
            colour = COLOURS[finding.status]
            advice = f"\n[italic]{escape(f'-> {finding.advice}')}[/italic]" if finding.advice else ""
            table.add_row(check.name, f"[{colour}]{finding.status}[/{colour}]", escape(finding.found) + advice)
    console.print(table)
    return done


def plain_lines(result: Result) -> list[str]:
    """A result as text: one line, and one more with what to do.

    Examples
    --------
    >>> print("\\n".join(plain_lines(Result(Check("disk", "m:disk"), Finding("fault", "full", "free space"), 0.1))))
    fault    disk          full
             -> free space
    """
    finding = result.finding
    lines = [f"{finding.status:8} {result.check.name:13} {finding.found}"]
    return lines + ([f"{'':8} -> {finding.advice}"] if finding.advice else [])


def verdict(results: Sequence[Result]) -> list[str]:
    """The last lines: "ready", or how many faults there are and what to do about each."""
    faults = [r for r in results if r.finding.status == "fault"]
    warnings = sum(r.finding.status == "warning" for r in results)
    if not faults:
        return ["ready" + (f", with {warnings} warning(s)" if warnings else "")]
    return [
        f"not ready: {len(faults)} fault(s)",
        *(f"  {r.check.name}: {r.finding.advice}" for r in faults),
    ]


def document(results: Sequence[Result], subject: Subject) -> dict[str, Any]:
    """The content of doctor.json: everything that was found, without secrets and without the user's name.

    Parameters
    ----------
    results : sequence of Result
    subject : Subject
        Of its recipe, only the sections `model` and `train` are included.
    """
    recipe = None
    if subject.recipe is not None:
        recipe = {name: recipe_to_dict(subject.recipe)[name] for name in ("model", "train")}
        local = Path(subject.recipe.model.model_name)
        if local.is_dir():
            recipe["model"]["model_name"] = local.resolve().name
    found = {
        "ready": all(r.finding.status != "fault" for r in results),
        "llmcls": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "recipe": recipe,
        "checks": [
            {
                "name": r.check.name, "status": r.finding.status, "found": r.finding.found, "advice": r.finding.advice,
                "seconds": round(r.seconds, 2), **({"details": r.finding.details} if r.finding.details else {}),
            }
            for r in results
        ],
    }  # fmt: skip
    return dict(_anonymous(found, list(_private_texts(subject))))


def _private_texts(subject: Subject) -> Iterator[tuple[str, str]]:
    """Patterns of what is not written, each with what replaces it."""
    tokens = [subject.recipe.model.hf_token if subject.recipe else None]
    tokens += [os.environ.get(name) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")]
    yield from ((re.escape(token), "***") for token in tokens if token)
    home = str(Path.home())
    if len(home) > 1:
        yield re.escape(home), "~"
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):
        return
    yield rf"(?<=[/\\]){re.escape(user)}(?=[/\\]|$)", "USER"


def _anonymous(value: Any, private: list[tuple[str, str]]) -> Any:
    """A value for JSON with every private text replaced, and with numbers that JSON has."""
    if isinstance(value, dict):
        return {str(key): _anonymous(inner, private) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_anonymous(inner, private) for inner in value]
    if isinstance(value, float) and not (abs(value) < float("inf")):
        return str(value)
    if isinstance(value, str):
        for pattern, other in private:
            value = re.sub(pattern, other, value)
    return value
