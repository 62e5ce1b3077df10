"""Make a demo data set and a tiny model, without a network: ``python -m llmcls.quickstart --out demo``.

Writes product texts to ``demo/data/{train,validation,test}.csv`` and a tiny pretrained Llama to ``demo/tiny-llama``.
"""

from __future__ import annotations

import time
from pathlib import Path

from llmcls.common.command import command_parser, run_command
from llmcls.datasets.products import make_corpus, write_data
from llmcls.model.tiny import write_tiny_llama


def main(argv: list[str] | None = None) -> None:
    """Write the files that do not exist yet."""
    parser = command_parser("quickstart", "Make a demo data set and a tiny model.")
    parser.add_argument("--out", default="demo", help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data and the model")
    parser.add_argument(
        "--rows", type=int, default=4000, help="training rows; validation and test get an eighth and a quarter"
    )
    parser.add_argument("--steps", type=int, default=500, help="pretraining steps of the model")
    parser.add_argument("--force", action="store_true", help="make everything again")
    arguments = parser.parse_args(argv)
    out = Path(arguments.out)
    data, model = out / "data", out / "tiny-llama"
    rows = {"train": arguments.rows, "validation": arguments.rows // 8, "test": arguments.rows // 4}
    if arguments.force or not all((data / f"{name}.csv").exists() for name in rows):
        write_data(data, arguments.seed, rows)
        print(f"data: {', '.join(f'{n} {name}' for name, n in rows.items())} rows -> {data}", flush=True)
    else:
        print(f"data: exists in {data}", flush=True)
    if arguments.force or not model.exists():
        start = time.perf_counter()
        loss = write_tiny_llama(model, make_corpus(4000, arguments.seed), arguments.seed, arguments.steps)
        print(f"model: next-token loss {loss:.2f} after {time.perf_counter() - start:.0f} s -> {model}", flush=True)
    else:
        print(f"model: exists in {model}", flush=True)


if __name__ == "__main__":
    run_command(main)
